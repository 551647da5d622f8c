//! Files that torch.save has written hold the tensors that torch.load finds in them.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use candle_diffusers_convert::pickle::Value;
use candle_diffusers_convert::{PickledFile, TensorFile};

fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/pickle")).join(name)
}

fn expected() -> TensorFile {
    TensorFile::open(path("pickle.safetensors")).unwrap()
}

/// Opens `name` and compares all of its tensors with what torch.load gave.
#[track_caller]
fn compare(name: &str) -> PickledFile {
    let expected = expected();
    let file = PickledFile::open(path(name)).unwrap();
    let prefix = format!("{name}:");
    let mut names: Vec<&str> =
        expected.tensors().iter().filter_map(|info| info.name.strip_prefix(&prefix)).collect();
    let mut found: Vec<&str> = file.tensors().map(|(name, _)| name).collect();
    names.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, names, "{name}");
    for tensor_name in names {
        let label = format!("{prefix}{tensor_name}");
        let (info, tensor) = (expected.get(&label).unwrap(), file.get(tensor_name).unwrap());
        assert_eq!((tensor.shape(), tensor.dtype()), (info.shape.as_slice(), info.dtype), "{label}");
        let bytes = expected.bytes(&label).unwrap();
        assert_eq!(file.bytes(tensor_name).unwrap(), bytes, "{label}");
        // In parts that fit no element.
        let mut read = vec![0; bytes.len()];
        for start in (0..bytes.len()).step_by(7) {
            let end = bytes.len().min(start + 7);
            file.read_at(tensor, start, &mut read[start..end]).unwrap();
        }
        assert_eq!(read, bytes, "{label} in parts");
        if let Some(range) = tensor.range() {
            assert_eq!(&std::fs::read(path(name)).unwrap()[range], bytes, "{label} in place");
        }
    }
    file
}

#[test]
fn zip_archives_of_all_protocols() {
    for protocol in 2..=5 {
        let file = compare(&format!("zip_protocol_{protocol}.pt"));
        assert!(file.bookkeeping().is_empty());
        let state = file.value().as_dict().unwrap().state().unwrap();
        assert!(state.get("_metadata").unwrap().get("views").is_some());
    }
}

#[test]
fn the_format_before_torch_1_6() {
    for protocol in [1, 2, 4] {
        compare(&format!("legacy_protocol_{protocol}.pt"));
    }
    compare("parts.pt");
}

#[test]
fn views_are_gathered_and_all_else_is_borrowed() {
    let file = PickledFile::open(path("zip_protocol_2.pt")).unwrap();
    let mut strided: Vec<&str> =
        file.tensors().filter(|(_, tensor)| tensor.range().is_none()).map(|(name, _)| name).collect();
    strided.sort_unstable();
    assert_eq!(
        strided,
        [
            "views.channels_last",
            "views.columns",
            "views.expanded",
            "views.half_transposed",
            "views.permuted",
            "views.stepped",
            "views.transposed"
        ]
    );
    let range = |name: &str| file.get(name).unwrap().range().unwrap();
    assert_eq!(range("views.whole"), range("views.shared"));
    assert_eq!(range("views.rows").start, range("views.whole").start + 2 * 8 * 4);
    assert_eq!(file.get("views.transposed").unwrap().strides(), [1, 8]);
    let starts: Vec<usize> =
        file.tensors().filter_map(|(_, tensor)| tensor.range().map(|range| range.start)).collect();
    assert!(starts.is_sorted(), "in the order of the file");
}

#[test]
fn the_state_of_training_is_listed_beside_the_weights() {
    for name in ["lightning.ckpt", "lightning_legacy.ckpt"] {
        let file = compare(name);
        assert_eq!(file.metadata()["global_step"], "470000");
        assert_eq!(file.metadata()["pytorch-lightning_version"], "1.4.2");
        let beside: Vec<(&str, u64)> =
            file.bookkeeping().iter().map(|extra| (extra.name.as_str(), extra.tensors)).collect();
        assert_eq!(
            beside,
            [
                ("epoch", 0),
                ("global_step", 0),
                ("pytorch-lightning_version", 0),
                ("callbacks", 1),
                ("optimizer_states", 6),
                ("lr_schedulers", 0),
                ("hparams", 0),
            ]
        );
        let callbacks = file.value().get("callbacks").unwrap().as_dict().unwrap();
        let (class, state) = callbacks.iter().next().unwrap();
        assert_eq!(class.summary(), "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint");
        assert_eq!(state.get("dirpath").unwrap().as_text(), Some("logs"));
        let Value::Object(score) = state.get("current_score").unwrap() else { panic!("a numpy scalar") };
        assert!(score.class().ends_with("multiarray.scalar"));
        let scheduler = &file.value().get("lr_schedulers").unwrap().as_sequence().unwrap()[0];
        let Value::Bytes(bytes) = scheduler.get("bytes").unwrap() else { panic!("bytes") };
        assert_eq!(**bytes, [0, 255]);
        let Value::BigInt(large) = scheduler.get("large").unwrap() else { panic!("a large integer") };
        assert_eq!(large.len(), 13);
        assert_eq!(scheduler.get("set").unwrap().summary(), "set of 2");
        let hparams = file.value().get("hparams").unwrap();
        assert_eq!(hparams.get("dtype").unwrap().summary(), "torch.float16");
        assert_eq!(hparams.get("shape").unwrap().summary(), "tuple of 2");
        assert!(matches!(hparams.get("none"), Some(Value::None)));
    }
}

#[test]
fn lists_and_embeddings() {
    let list = compare("list.pt");
    assert_eq!(list.value().as_sequence().unwrap().len(), 4);
    assert_eq!(list.value().as_sequence().unwrap()[2].as_tensor().unwrap().shape(), [6, 2]);
    let embedding = compare("embedding.pt");
    assert_eq!(embedding.metadata()["name"], "style");
    assert!(embedding.value().get("string_to_param").unwrap().get("*").unwrap().as_tensor().is_some());
    let container = compare("parameter_dict.pt");
    let Some(Value::Object(container)) = container.value().get("string_to_param") else {
        panic!("an object")
    };
    assert_eq!(container.class(), "torch.nn.modules.container.ParameterDict");
    let parameters = container.state().unwrap().get("_parameters").unwrap();
    assert_eq!(parameters.get("*").unwrap().as_tensor().unwrap().shape(), [2, 8]);
}

#[test]
fn data_parallel_prefixes_and_later_element_types() {
    let parallel = compare("parallel.pt");
    assert_eq!(parallel.metadata()["epoch"], "3");
    compare("subclass.pt");
}
