//! Embedding files as the programs that train them write them: what is in them, and what becomes of it in the other layouts.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_diffusers_convert::{
    ConvertOptions, Embedding, EmbeddingFile, EmbeddingFormat, EmbeddingLayout, Source, TensorFile,
    TokenOrigin, WriteOptions, convert, open_file,
};

use EmbeddingLayout::{Diffusers, EmbParams, StringToParam, Tensor, TwoEncoders};
use TokenOrigin::{File as InFile, FileName};

fn here(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/embedding_layouts")).join(name)
}

/// A file with its layout, where its tokens are from, and the tokens with what the fixture calls their vectors.
type File = (&'static str, EmbeddingLayout, TokenOrigin, &'static [(&'static str, &'static str)]);

const FILES: [File; 13] = [
    ("diffusers.safetensors", Diffusers, InFile, &[("<dog>", "diffusers.safetensors")]),
    ("concept", Diffusers, InFile, &[("<cat-toy>", "concept")]),
    ("old.bin", Diffusers, InFile, &[("<old>", "old.bin")]),
    (
        "several.safetensors",
        Diffusers,
        InFile,
        &[("<s0>", "several.safetensors.0"), ("<s1>", "several.safetensors.1")],
    ),
    ("turned.bin", Diffusers, InFile, &[("<turned>", "turned.bin")]),
    ("webui.pt", StringToParam, InFile, &[("bad-hands", "webui.pt")]),
    ("EasyNegative.pt", StringToParam, InFile, &[("EasyNegative", "EasyNegative.pt")]),
    ("paper.pt", StringToParam, FileName, &[("paper", "paper.pt")]),
    ("kohya.pt", EmbParams, FileName, &[("kohya", "kohya.pt")]),
    ("kohya.safetensors", EmbParams, FileName, &[("kohya", "kohya.safetensors")]),
    ("bare.bin", Tensor, FileName, &[("bare", "bare.bin")]),
    ("sdxl.safetensors", TwoEncoders, FileName, &[("sdxl", "sdxl.safetensors.clip_l")]),
    ("sdxl.pt", TwoEncoders, FileName, &[("sdxl", "sdxl.pt.clip_l")]),
];

/// The vectors of `embedding` for the first and the second text encoder, as bytes.
fn vectors(source: &dyn Source, embedding: &Embedding) -> Vec<(usize, usize, Vec<u8>)> {
    let read = |tensor: &candle_diffusers_convert::TensorRef| {
        let (count, width) = Embedding::vectors_and_width(tensor);
        (count, width, source.bytes(&tensor.name).unwrap().into_owned())
    };
    embedding.tensors().map(|(_, tensor)| read(tensor)).collect()
}

/// The same as the fixture has them.
fn expected(fixture: &TensorFile, name: &str) -> Vec<(usize, usize, Vec<u8>)> {
    let second = name.strip_suffix("clip_l").map(|name| format!("{name}clip_g"));
    let read = |name: &str| {
        let shape = &fixture.get(name).unwrap().shape;
        let (count, width) = if let [count, width] = shape[..] { (count, width) } else { (1, shape[0]) };
        (count, width, fixture.bytes(name).unwrap().to_vec())
    };
    std::iter::once(name).chain(second.as_deref()).map(read).collect()
}

fn run(source: &Path, destination: &Path, embedding_format: EmbeddingFormat) -> Vec<String> {
    let options = ConvertOptions {
        embedding_format: Some(embedding_format),
        write: WriteOptions { overwrite: true, ..WriteOptions::default() },
        ..ConvertOptions::default()
    };
    convert(source, destination, &options, &|_| {}).unwrap().lines()
}

#[test]
fn every_layout_is_read() {
    let fixture = TensorFile::open(here("embedding_layouts.safetensors")).unwrap();
    for (name, layout, origin, embeddings) in FILES {
        let (file, source) = EmbeddingFile::open(here(name)).unwrap();
        assert_eq!(file.layout, layout, "{name}");
        assert!(file.embeddings.iter().all(|one| one.token_origin == origin), "{name}");
        let tokens: Vec<&str> = file.embeddings.iter().map(|one| one.token.as_str()).collect();
        assert_eq!(tokens, embeddings.iter().map(|(token, _)| *token).collect::<Vec<_>>(), "{name}");
        for (embedding, (_, key)) in file.embeddings.iter().zip(embeddings) {
            assert_eq!(vectors(source.as_ref(), embedding), expected(&fixture, key), "{name}");
        }
    }
}

#[test]
fn what_stands_beside_the_vectors_is_kept_or_told() {
    let (file, _) = EmbeddingFile::open(here("webui.pt")).unwrap();
    let metadata: Vec<(&str, &str)> =
        file.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let expected = [
        ("name", "bad-hands"),
        ("sd_checkpoint", "cc6cb27103"),
        ("sd_checkpoint_name", "v1-5-pruned-emaonly"),
        ("step", "500"),
    ];
    assert_eq!(metadata, expected);
    let (file, _) = EmbeddingFile::open(here("paper.pt")).unwrap();
    assert_eq!(file.left_out.len(), 1);
    assert_eq!(file.left_out[0].name, "string_to_token.*");

    let folder = tempfile::tempdir().unwrap();
    let (diffusers, web_ui) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    run(&here("webui.pt"), &diffusers, EmbeddingFormat::Diffusers);
    run(&diffusers, &web_ui, EmbeddingFormat::WebUi);
    for path in [diffusers, web_ui] {
        let file = TensorFile::open(path).unwrap();
        assert!(expected.iter().all(|(key, value)| file.metadata()[*key] == *value), "{:?}", file.metadata());
    }
    let lines = run(&here("paper.pt"), &folder.path().join("c.safetensors"), EmbeddingFormat::Diffusers);
    assert!(lines.iter().any(|line| line.contains("string_to_token.*")), "{lines:?}");
}

#[test]
fn the_same_bytes_come_through_every_layout() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // What the nameless tensor is would be told by its width, if it had that of a real text encoder.
    for (name, layout, _, embeddings) in FILES.into_iter().filter(|(name, ..)| *name != "bare.bin") {
        let (file, source) = EmbeddingFile::open(here(name)).unwrap();
        let first = vectors(source.as_ref(), &file.embeddings[0]);
        run(&here(name), &at("diffusers.safetensors"), EmbeddingFormat::Diffusers);
        run(&here(name), &at("folder"), EmbeddingFormat::Diffusers);
        let mut converted = vec![(at("diffusers.safetensors"), Diffusers), (at("folder"), Diffusers)];
        if embeddings.len() == 1 {
            run(&at("diffusers.safetensors"), &at("webui.safetensors"), EmbeddingFormat::WebUi);
            run(&at("webui.safetensors"), &at("again.safetensors"), EmbeddingFormat::Diffusers);
            converted.extend([(at("webui.safetensors"), EmbParams), (at("again.safetensors"), Diffusers)]);
        }
        for (path, to) in converted {
            let (again, source) = EmbeddingFile::open(&path).unwrap();
            let to = if layout == TwoEncoders { TwoEncoders } else { to };
            assert_eq!(again.layout, to, "{name} as {}", path.display());
            assert_eq!(again.embeddings.len(), embeddings.len(), "{name}");
            assert_eq!(again.embeddings[0].token, file.embeddings[0].token, "{name} as {}", path.display());
            assert_eq!(vectors(source.as_ref(), &again.embeddings[0]), first, "{name} as {}", path.display());
        }
    }
}

#[test]
fn what_each_is_can_be_told_by_names_and_shapes() {
    // Nothing but its width would tell, and the tiny one here is no text encoder's.
    let nameless = ["bare.bin"];
    for (name, ..) in FILES.iter().filter(|(name, ..)| !nameless.contains(name)) {
        let file = if *name == "concept" { here("concept/learned_embeds.bin") } else { here(name) };
        assert!(EmbeddingFile::looks_like_one(&open_file(&file).unwrap().inventory()), "{name}");
    }
}
