//! Which names mean the same tensor, and which mean none.

/// What transformers writes in front of a CLIP text encoder's names, up to version 4.
const TEXT_MODEL: &str = "text_model.";
/// The same of CLIP's encoder of pictures; in a safety checker there is a `vision_model.` before this one.
const VISION_MODEL: &str = "vision_model.";

/// A linear layer of attention as it is called now, and as diffusers called it in the VAE before 0.18.
const OLD_ATTENTION_NAMES: [(&str, &str); 4] =
    [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];

/// How many similar names an error suggests.
const SUGGESTIONS: usize = 3;

/// Other spellings under which a checkpoint may have the tensor `name`.
pub(crate) fn other_names(name: &str) -> Vec<String> {
    let mut names = vec![match name.strip_prefix(TEXT_MODEL) {
        Some(without) => without.to_string(),
        None => format!("{TEXT_MODEL}{name}"),
    }];
    names.extend(name.strip_prefix(VISION_MODEL).map(str::to_string));
    // diffusers, modeling_utils.py, _fix_state_dict_keys_on_load.
    let old = OLD_ATTENTION_NAMES.iter().find(|(now, _)| name.contains(now));
    names.extend(old.map(|(now, before)| name.replacen(now, before, 1)));
    names
}

/// Whether a tensor of that name is no weight: positions that old versions of transformers saved with the model.
pub(crate) fn is_bookkeeping(name: &str) -> bool {
    name.rsplit('.').next() == Some("position_ids")
}

/// The `names` most like `name`, best first; none where nothing comes near.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut ranked: Vec<(usize, &str)> = names.map(|other| (likeness(name, other), other)).collect();
    ranked.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let enough = name.split('.').count();
    ranked
        .iter()
        .filter(|(score, _)| *score >= enough)
        .take(SUGGESTIONS)
        .map(|(_, other)| other.to_string())
        .collect()
}

/// How many parts of two dotted names agree, from the front and from the back; the front counts double because it is
/// the place in the model.
fn likeness(a: &str, b: &str) -> usize {
    let (a, b): (Vec<&str>, Vec<&str>) = (a.split('.').collect(), b.split('.').collect());
    let front = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let rest = a.len().min(b.len()) - front;
    let back = a.iter().rev().zip(b.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    2 * front + back
}
