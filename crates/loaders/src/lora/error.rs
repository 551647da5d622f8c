/// What can go wrong between a LoRA file and the models that it shall change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// The file is for models of another family.
    #[error(
        "{file} looks like a LoRA for {looks_like}, and this is {model}: {count} of its {total} layers do not fit, the first: {}{}",
        .names.join(", "), more(*.count, .names)
    )]
    OtherFamily {
        /// The LoRA.
        file: String,
        /// The family that it is for.
        looks_like: &'static str,
        /// The family of the models.
        model: &'static str,
        /// How many of its layers are not in the models or have other shapes there.
        count: usize,
        /// How many layers it has.
        total: usize,
        /// Tensors of the first of them.
        names: Vec<String>,
    },
    /// Tensors that belong to no layer of the models.
    #[error(
        "{file} has keys that match no layer of the model ({count}): {}{}{}",
        .names.join(", "), more(*.count, .names), looks_like_text(*.looks_like)
    )]
    Unmatched {
        /// The LoRA.
        file: String,
        /// How many.
        count: usize,
        /// The first of them, as the file calls them.
        names: Vec<String>,
        /// The family that the file is for.
        looks_like: Option<&'static str>,
    },
    /// No layer of the file is one of the models'.
    #[error(
        "{file} changes no layer of this model: none of its {count} keys matches, the first: {}{}{}",
        .names.join(", "), more(*.count, .names), looks_like_text(*.looks_like)
    )]
    NothingMatches {
        /// The LoRA.
        file: String,
        /// How many keys it has.
        count: usize,
        /// The first of them.
        names: Vec<String>,
        /// The family that the file is for.
        looks_like: Option<&'static str>,
    },
    /// A layer's change has another shape than the layer.
    #[error(
        "{file}: {tensor} makes a change of shape {found:?}, but the weight of {layer} is {expected:?} ({count} of {total} layers do not \
         fit); the LoRA is for another model{}",
        looks_like_text(*.looks_like)
    )]
    WrongShape {
        /// The LoRA.
        file: String,
        /// A tensor of the change.
        tensor: String,
        /// The shape of the change.
        found: Vec<usize>,
        /// The layer, after its component's name.
        layer: String,
        /// The shape of its weight.
        expected: Vec<usize>,
        /// How many layers do not fit.
        count: usize,
        /// How many layers the file has.
        total: usize,
        /// The family that the file is for.
        looks_like: Option<&'static str>,
    },
    /// A layer that something else has put an adapter on.
    #[error(
        "{layer} is adapted already, not by a LoRA that was loaded here: detach that first, or use a clone of the model"
    )]
    AdaptedElsewhere {
        /// The layer, after its component's name.
        layer: String,
    },
    /// A name that is loaded already.
    #[error("a LoRA called {name:?} is loaded already; take another name, or unload that one")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A name that nothing was loaded under.
    #[error("no LoRA called {name:?} is loaded; {}", loaded_text(.loaded))]
    UnknownName {
        /// The name.
        name: String,
        /// The names that are loaded.
        loaded: Vec<String>,
    },
    /// A name that is given more than once.
    #[error("the LoRA {name:?} is named twice; give it one weight")]
    NamedTwice {
        /// The name.
        name: String,
    },
    /// A weight that is no number to multiply by.
    #[error("the weight of the LoRA {name:?} is {strength}, expected a finite number")]
    Strength {
        /// The LoRA's name.
        name: String,
        /// The weight.
        strength: f64,
    },
    /// A layer could not be changed. All LoRAs are inactive then, and the models are as they were without.
    #[error("changing the layer {layer}: {source}; no LoRA is active now")]
    Compute {
        /// The layer, after its component's name.
        layer: String,
        /// What the tensor library said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn more(count: usize, names: &[String]) -> &'static str {
    if count > names.len() { ", ..." } else { "" }
}

fn looks_like_text(family: Option<&'static str>) -> String {
    family.map(|family| format!("; it looks like a LoRA for {family}")).unwrap_or_default()
}

fn loaded_text(names: &[String]) -> String {
    match names {
        [] => "none is".to_string(),
        names => format!("loaded are {}", names.join(", ")),
    }
}
