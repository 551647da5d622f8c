/// What can be wrong with a LoRA file, or with one to be. Every message begins with the file's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// Nothing in the file is known as part of a LoRA.
    #[error("{file} is not a LoRA file that is known: none of its {count} tensors has a name that a LoRA has, the first: {}", names.join(", "))]
    NotALora {
        /// The file.
        file: String,
        /// How many tensors there are.
        count: usize,
        /// The first of them.
        names: Vec<String>,
    },
    /// A layout for LoRA files was asked for, and the source is none.
    #[error("{file} is not a LoRA; leave out the layout for LoRA files (--lora-format), or name a LoRA file")]
    NotForLora {
        /// The source.
        file: String,
    },
    /// A LoRA for a model of another kind.
    #[error("{file} is a LoRA for {what}, which is not among the known models (tensor {tensor})")]
    OtherModel {
        /// The file.
        file: String,
        /// Which model it is for.
        what: &'static str,
        /// A tensor that only those have.
        tensor: String,
    },
    /// One tensor of a layer is there without one that belongs to it.
    #[error(
        "{file}: tensor {tensor} is there, but {missing}, which belongs to it, is not; the file is not whole"
    )]
    HalfPair {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The name that the other one would have.
        missing: String,
    },
    /// Two tensors are the same part of the same layer.
    #[error("{file}: tensors {first} and {second} are both the same part of the layer {layer}")]
    Twice {
        /// The file.
        file: String,
        /// One tensor.
        first: String,
        /// The other.
        second: String,
        /// The layer, by its name in diffusers.
        layer: String,
    },
    /// The ranks of two tensors of a layer differ.
    #[error(
        "{file}: tensor {first} has the shape {first_shape:?} and {second} has {second_shape:?}: their ranks must agree"
    )]
    Ranks {
        /// The file.
        file: String,
        /// One tensor.
        first: String,
        /// Its shape.
        first_shape: Vec<usize>,
        /// The other tensor.
        second: String,
        /// Its shape.
        second_shape: Vec<usize>,
    },
    /// A tensor has a shape that its part of a layer cannot have.
    #[error("{file}: tensor {tensor} has the shape {shape:?}, expected {expected}")]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What was expected.
        expected: String,
    },
    /// A tensor has an element type that its part of a layer cannot have.
    #[error("{file}: tensor {tensor} is {dtype}, expected floating-point numbers")]
    Dtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: safetensors::Dtype,
    },
    /// An alpha that is no number to multiply by.
    #[error("{file}: {place} is {value}, expected a finite number")]
    Alpha {
        /// The file.
        file: String,
        /// The tensor or the field.
        place: String,
        /// What it is.
        value: f64,
    },
    /// A config that comes with the weights and cannot be understood.
    #[error("{file}: {place}: {message}")]
    Config {
        /// The file.
        file: String,
        /// Where the config is.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// A list of weights without names that fits no known model.
    #[error(
        "{file}: the {count} pairs of weights for the {component} have no names, and their shapes are those of no known model: {message}"
    )]
    NoSuchOrder {
        /// The file.
        file: String,
        /// How many pairs there are.
        count: usize,
        /// The component that they are for.
        component: &'static str,
        /// Where the nearest known model differs.
        message: String,
    },
    /// Changes that a layout has no place for.
    #[error(
        "{file}: {count} layers are changed by {what}, the first {layer}: a LoRA file in the {format} layout has no place for that; \
         write --lora-format kohya, or make a plain LoRA of it by `diffuse lora resize`"
    )]
    NoPlace {
        /// The file.
        file: String,
        /// The layout.
        format: &'static str,
        /// How many layers there are.
        count: usize,
        /// The first of them.
        layer: String,
        /// What changes it.
        what: &'static str,
    },
    /// A tensor into which alpha would have to be multiplied, of an element type that has no arithmetic here.
    #[error(
        "{file}: tensor {tensor} is {dtype}, into which alpha cannot be multiplied; name a folder as the destination, which keeps \
         alpha, or choose another layout"
    )]
    NotScaled {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: safetensors::Dtype,
    },
    /// A LoRA for several models in a file that can be about one only.
    #[error(
        "{file} is for {}: a file in the PEFT layout is about one model; name a folder as the destination, which gets one for each",
        components.join(", ")
    )]
    SeveralModels {
        /// The file.
        file: String,
        /// The models.
        components: Vec<&'static str>,
    },
    /// A LoRA with DoRA's lengths, whose change depends on the weights of the model.
    #[error(
        "{what} has lengths of DoRA, which cannot be merged without the model; merge it into the model by fusing instead"
    )]
    DoraWithoutModel {
        /// The file and the layer.
        what: String,
    },
    /// Several LoRAs for models that are built otherwise.
    #[error("{first} is a LoRA for {first_family} and {second} one for {second_family}: they cannot be one")]
    DifferentFamilies {
        /// One file.
        first: String,
        /// What it is for.
        first_family: &'static str,
        /// Another file.
        second: String,
        /// What that is for.
        second_family: &'static str,
    },
    /// A change that is no product where no rank is given.
    #[error(
        "{what} is changed by LoHa or LoKr, of which only an approximation can be a LoRA; give its rank (--rank 16)"
    )]
    NeedsRank {
        /// The file and the layer.
        what: String,
    },
    /// Two changes of one layer that are of different sizes.
    #[error(
        "{what} changes a weight of {found:?}, another file one of {expected:?}; they are for different models"
    )]
    OtherShape {
        /// The file and the layer.
        what: String,
        /// The shape there.
        found: Vec<usize>,
        /// The shape in the other file.
        expected: Vec<usize>,
    },
    /// A matrix that has no singular values.
    #[error("{what} has values that are infinite or not numbers, so that it cannot be decomposed")]
    NotDecomposed {
        /// The file and the layer.
        what: String,
    },
    /// Two models that are not built alike.
    #[error(
        "{base} and {tuned} are not built alike: {tensor} is {in_base} in the first and {in_tuned} in the second"
    )]
    NotAlike {
        /// One model.
        base: String,
        /// The other.
        tuned: String,
        /// A tensor that differs, by its name in diffusers.
        tensor: String,
        /// What it is in the first.
        in_base: String,
        /// What it is in the second.
        in_tuned: String,
    },
    /// Two models between which there is no difference.
    #[error("{base} and {tuned} have the same weights: there is nothing to extract")]
    Equal {
        /// One model.
        base: String,
        /// The other.
        tuned: String,
    },
    /// Two models that differ only in what a LoRA has no place for.
    #[error(
        "{base} and {tuned} differ in {count} tensors that a LoRA has no place for (biases, normalizations, embeddings), the first {first}: \
         there is nothing to extract"
    )]
    NoDifferentMatrix {
        /// One model.
        base: String,
        /// The other.
        tuned: String,
        /// How many tensors differ.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// Two models of which no part is in both.
    #[error(
        "{base} has {in_base} and {tuned} has {in_tuned}: there is nothing in both that a LoRA is extracted from"
    )]
    NothingInCommon {
        /// One model.
        base: String,
        /// The other.
        tuned: String,
        /// The parts of the first, by their folders' names.
        in_base: String,
        /// The parts of the second.
        in_tuned: String,
    },
    /// A model without layers that LoRAs change.
    #[error("{file} is {title}: a LoRA is extracted from a UNet or text encoders")]
    NothingToAdapt {
        /// The file.
        file: String,
        /// What it is.
        title: String,
    },
}

impl LoraError {
    pub(super) fn shape(file: &str, tensor: &super::TensorRef, expected: impl Into<String>) -> Self {
        Self::Shape {
            file: file.to_string(),
            tensor: tensor.name.clone(),
            shape: tensor.shape.clone(),
            expected: expected.into(),
        }
    }
}
