use std::collections::BTreeSet;

use candle_diffusers_convert::{Embedding, EmbeddingFile, Inventory, Source, TokenOrigin};
use serde_json::{Map, Value, json};

use super::checkpoint::family_name;
use super::metadata::metadata;
use super::tensor_file;

/// A textual inversion embedding; `None` for files of other tensors.
pub(super) fn inspect(source: &dyn Source, inventory: &Inventory) -> Option<Value> {
    if !EmbeddingFile::looks_like_one(inventory) {
        return None;
    }
    let mut report = Map::new();
    report.insert("kind".into(), "embedding".into());
    match EmbeddingFile::read(source) {
        Ok(file) => describe(&mut report, &file),
        Err(error) => _ = report.insert("problem".into(), error.to_string().into()),
    }
    report.extend(tensor_file::contents(inventory));
    report.insert("metadata".into(), metadata(source));
    Some(Value::Object(report))
}

fn describe(report: &mut Map<String, Value>, file: &EmbeddingFile) {
    report.insert("layout".into(), file.layout.name().into());
    report.insert("family".into(), file.family().map(family_name).into());
    if let [embedding] = &file.embeddings[..] {
        report.extend(describe_one(embedding));
    } else {
        let tokens: Vec<&str> = file.embeddings.iter().map(|one| one.token.as_str()).collect();
        report.insert("tokens".into(), json!(tokens));
        let each = file.embeddings.iter().map(|one| (one.token.clone(), describe_one(one).into()));
        report.insert("embeddings".into(), Value::Object(each.collect()));
    }
    if !file.left_out.is_empty() {
        let names: Vec<&str> = file.left_out.iter().map(|one| one.name.as_str()).collect();
        report.insert("left_out".into(), json!(names));
    }
}

/// One token's vectors: how many and how wide, which differs between the two text encoders of Stable Diffusion XL.
fn describe_one(embedding: &Embedding) -> Map<String, Value> {
    let mut fields = Map::new();
    let origin = match embedding.token_origin {
        TokenOrigin::File => "file",
        TokenOrigin::FileName => "file name",
    };
    let sizes: Vec<_> = embedding
        .tensors()
        .map(|(encoder, tensor)| (encoder, Embedding::vectors_and_width(tensor), tensor.dtype.to_string()))
        .collect();
    fields.insert("token".into(), embedding.token.clone().into());
    fields.insert("token_from".into(), origin.into());
    // One number where the encoders agree.
    let agreed = |numbers: Vec<usize>| match &numbers[..] {
        [first, rest @ ..] if rest.iter().all(|number| number == first) => json!(first),
        _ => json!(numbers),
    };
    fields.insert("vectors".into(), agreed(sizes.iter().map(|(_, (vectors, _), _)| *vectors).collect()));
    fields.insert("width".into(), agreed(sizes.iter().map(|(_, (_, width), _)| *width).collect()));
    let dtypes: BTreeSet<&str> = sizes.iter().map(|(.., dtype)| dtype.as_str()).collect();
    fields.insert("dtype".into(), dtypes.into_iter().collect::<Vec<_>>().join(", ").into());
    if sizes.len() > 1 {
        let each = sizes.iter().map(|(encoder, (vectors, width), dtype)| {
            let size = json!({"vectors": vectors, "width": width, "dtype": dtype});
            (encoder.to_string(), size)
        });
        fields.insert("text_encoders".into(), Value::Object(each.collect()));
    }
    fields
}
