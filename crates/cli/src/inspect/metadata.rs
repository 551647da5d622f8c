use candle_diffusers_convert::Source;
use serde_json::{Map, Value};

/// How much of a picture inside the metadata is shown.
const PICTURE_SHOWN: usize = 40;

/// The text that a file carries beside its tensors; pictures in it (`modelspec.thumbnail`) are cut short.
pub(super) fn metadata(source: &dyn Source) -> Value {
    let shown = |text: String| match text.len() {
        length if text.starts_with("data:") && length > PICTURE_SHOWN => {
            let start: String = text.chars().take(PICTURE_SHOWN).collect();
            format!("{start}... ({length} bytes)")
        }
        _ => text,
    };
    let fields = source.metadata().into_iter().map(|(key, text)| (key, shown(text).into()));
    Value::Object(fields.collect::<Map<_, _>>())
}
