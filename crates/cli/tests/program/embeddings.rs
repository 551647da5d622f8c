//! Textual inversion embeddings: in prompts, converted and inspected.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::program::{Workplace, shapes};

/// One of the small files that the programs which train embeddings have written.
fn layouts(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../convert/tests/parity/embedding_layouts").join(name)
}

/// A safetensors file with one tensor of float32 values.
fn write_tensor(path: &Path, name: &str, shape: &[usize], value: f32) {
    let count: usize = shape.iter().product();
    let header = json!({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * count]}}).to_string();
    let values: Vec<u8> = (0..count).flat_map(|_| value.to_le_bytes()).collect();
    fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &values].concat()).unwrap();
}

/// How wide the vectors of the small model's text encoder are.
fn width() -> usize {
    let config = fs::read_to_string(shapes().join("text_encoder/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    config["hidden_size"].as_u64().unwrap() as usize
}

fn generate<'a>(prompt: &'a str, output: &'a str) -> Vec<&'a str> {
    vec!["generate", prompt, "--steps", "2", "--seed", "1", "--output", output]
}

fn pixels(workplace: &Workplace, name: &str) -> image::RgbImage {
    image::open(workplace.path(name)).unwrap().to_rgb8()
}

#[test]
fn a_prompt_uses_embeddings_by_their_tokens() {
    let workplace = Workplace::new();
    write_tensor(&workplace.path("cat.safetensors"), "<cat>", &[2, width()], 0.3);
    write_tensor(&workplace.path("dog.safetensors"), "emb_params", &[1, width()], -0.2);
    let run = |prompt: &str, output: &str, embeddings: &[&str]| {
        let flags = embeddings.iter().flat_map(|name| ["--embedding", name]);
        let run = workplace.succeed(generate(prompt, output).into_iter().chain(flags));
        assert_eq!(run.stderr, format!("wrote {output}\n"));
        pixels(&workplace, output)
    };
    let both = run("a <cat> and a dog", "both.png", &["cat.safetensors", "dog.safetensors:dog"]);
    let one = run("a <cat> and a dog", "one.png", &["cat.safetensors"]);
    let none = run("a <cat> and a dog", "none.png", &[]);
    assert!(both != one && one != none);
    // The token of a file that says none is its name, and another can be given to any.
    let other = run("a x:y and a dog", "other.png", &["cat.safetensors:x:y", "dog.safetensors"]);
    assert!(other == both, "only the token's name differs");
    let negative = workplace.succeed(generate("a star", "negative.png").into_iter().chain([
        "--negative-prompt",
        "<cat>",
        "--embedding",
        "cat.safetensors",
    ]));
    assert_eq!(negative.status, Some(0));
    let report = workplace.succeed(["inspect", "both.png", "--json"]).stdout;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["parameters"]["prompt"], "a <cat> and a dog");
}

#[test]
fn embeddings_are_inspected() {
    let workplace = Workplace::new();
    for name in ["webui.pt", "kohya.safetensors", "several.safetensors", "sdxl.pt"] {
        fs::copy(layouts(name), workplace.path(name)).unwrap();
        insta::assert_snapshot!(name, workplace.succeed(["inspect", name]).stdout);
    }
    let json = workplace.succeed(["inspect", "webui.pt", "--json"]).stdout;
    insta::assert_snapshot!("webui.pt_json", json);
    write_tensor(&workplace.path("real.safetensors"), "<cat>", &[3, 768], 0.0);
    let report: Value =
        serde_json::from_str(&workplace.succeed(["inspect", "real.safetensors", "--json"]).stdout).unwrap();
    let found = ["kind", "family", "vectors", "width", "token"].map(|field| &report[field]);
    assert_eq!(found, [&json!("embedding"), &json!("sd1"), &json!(3), &json!(768), &json!("<cat>")]);
    fs::create_dir(workplace.path("concept")).unwrap();
    fs::copy(layouts("concept/learned_embeds.bin"), workplace.path("concept/learned_embeds.bin")).unwrap();
    let report: Value =
        serde_json::from_str(&workplace.succeed(["inspect", "concept", "--json"]).stdout).unwrap();
    assert_eq!((&report["kind"], &report["token"]), (&json!("embedding"), &json!("<cat-toy>")));
    // One that claims to be an embedding and cannot be one.
    write_tensor(&workplace.path("solid.safetensors"), "emb_params", &[1, 2, 3], 0.0);
    let report: Value =
        serde_json::from_str(&workplace.succeed(["inspect", "solid.safetensors", "--json"]).stdout).unwrap();
    assert_eq!(report["kind"], "embedding");
    assert!(report["problem"].as_str().unwrap().contains("[1, 2, 3]"), "{report}");
}

#[test]
fn embeddings_are_converted() {
    let workplace = Workplace::new();
    fs::copy(layouts("webui.pt"), workplace.path("bad.pt")).unwrap();
    let run = workplace.succeed(["convert", "bad.pt", "a.safetensors"]);
    assert!(run.stderr.contains("token bad-hands: vectors 4 of width 16"), "{}", run.stderr);
    workplace.succeed(["convert", "a.safetensors", "b.safetensors", "--embedding-format", "webui"]);
    workplace.succeed([
        "convert",
        "b.safetensors",
        "c.safetensors",
        "--embedding-format=diffusers",
        "--dtype=f16",
    ]);
    workplace.succeed(["convert", "b.safetensors", "folder"]);
    workplace.succeed(["convert", "bad.pt", "folder", "--overwrite"]);
    workplace.refuse(["convert", "bad.pt", "a.safetensors"], &["a.safetensors", "exists"]);
    let names = ["a.safetensors", "b.safetensors", "bad.pt", "c.safetensors", "folder"];
    assert_eq!(workplace.names(), names);
    let token = |name: &str| {
        let report: Value =
            serde_json::from_str(&workplace.succeed(["inspect", name, "--json"]).stdout).unwrap();
        (report["layout"].clone(), report["token"].clone(), report["dtype"].clone())
    };
    for (name, layout, dtype) in [
        ("a.safetensors", "diffusers", "F32"),
        ("b.safetensors", "emb_params", "F32"),
        ("c.safetensors", "diffusers", "F16"),
        ("folder/learned_embeds.safetensors", "diffusers", "F32"),
    ] {
        assert_eq!(token(name), (layout.into(), "bad-hands".into(), dtype.into()), "{name}");
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    let workplace = Workplace::new();
    let at = |name: &str| workplace.path(name);
    let float = 0.1;
    write_tensor(&at("good.safetensors"), "<cat>", &[2, width()], float);
    write_tensor(&at("wide.safetensors"), "<cat>", &[2, 1024], float);
    write_tensor(&at("none.safetensors"), "<cat>", &[0, 768], float);
    write_tensor(&at("solid.safetensors"), "<cat>", &[1, 2, 4], float);
    write_tensor(&at("lora.safetensors"), "lora_unet_mid.lora_up.weight", &[4, 4], float);
    fs::copy(layouts("sdxl.safetensors"), at("sdxl.safetensors")).unwrap();
    fs::copy(layouts("several.safetensors"), at("several.safetensors")).unwrap();
    let pickle = fs::read(layouts("webui.pt")).unwrap();
    fs::write(at("cut.pt"), &pickle[..pickle.len() / 2]).unwrap();
    fs::write(at("calls.pt"), b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.").unwrap();
    fs::write(at("text.txt"), "hello").unwrap();
    fs::create_dir(at("empty")).unwrap();
    let refuse = |embeddings: &[&str], culprits: &[&str]| {
        let flags = embeddings.iter().flat_map(|name| ["--embedding", name]);
        let arguments: Vec<&str> = generate("a <cat>", "out.png").into_iter().chain(flags).collect();
        workplace.refuse(arguments, culprits);
    };
    let wide = format!("takes {}", width());
    refuse(&["wide.safetensors"], &["wide.safetensors", "tensor <cat>", "1024", &wide, "Stable Diffusion 2"]);
    refuse(&["none.safetensors"], &["none.safetensors", "tensor <cat>", "[0, 768]", "at least one vector"]);
    refuse(&["solid.safetensors"], &["solid.safetensors", "tensor <cat>", "[1, 2, 4]"]);
    refuse(&["lora.safetensors"], &["lora.safetensors", "looks like a LoRA"]);
    refuse(&["sdxl.safetensors"], &["sdxl.safetensors", "Stable Diffusion XL"]);
    refuse(&["several.safetensors:<x>"], &["several.safetensors", "2 embeddings"]);
    refuse(&["cut.pt"], &["cut.pt"]);
    refuse(&["calls.pt"], &["calls.pt"]);
    refuse(&["text.txt"], &["text.txt"]);
    refuse(&["empty"], &["empty"]);
    refuse(&["missing.pt"], &["--embedding", "missing.pt", "no such file"]);
    refuse(&["missing.pt:<x>"], &["--embedding", "missing.pt:<x>"]);
    refuse(&["good.safetensors:"], &["--embedding", "good.safetensors", "no token"]);
    refuse(&[""], &["--embedding"]);
    refuse(&["good.safetensors", "good.safetensors"], &["good.safetensors", "\"<cat>\"", "another token"]);
    refuse(&["good.safetensors:a"], &["good.safetensors", "\"a\"", "vocabulary"]);
    for source in ["none.safetensors", "solid.safetensors"] {
        workplace.refuse(["convert", source, "converted.safetensors"], &[source, "tensor <cat>"]);
    }
    workplace.refuse(["convert", "cut.pt", "converted.safetensors"], &["cut.pt"]);
    let shapes = shapes().display().to_string();
    let not_one = ["convert", &shapes, "out.safetensors", "--embedding-format", "webui"];
    workplace.refuse(not_one, &["shapes", "not a textual inversion embedding"]);
    let web_ui = ["convert", "several.safetensors", "out.safetensors", "--embedding-format", "webui"];
    workplace.refuse(web_ui, &["several.safetensors", "2 embeddings"]);
    assert_eq!(workplace.run(["convert", "a", "b", "--embedding-format", "other"]).status, Some(2));
}

#[test]
fn vectors_that_are_no_numbers_are_warned_of() {
    let workplace = Workplace::new();
    write_tensor(&workplace.path("nan.safetensors"), "<cat>", &[1, width()], f32::NAN);
    let run = workplace
        .succeed(generate("a star", "out.png").into_iter().chain(["--embedding", "nan.safetensors"]));
    let warning = "warning: nan.safetensors: tensor <cat> has values that are infinite or not numbers";
    assert!(run.stderr.starts_with(warning), "{}", run.stderr);
}
