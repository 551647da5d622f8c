//! Names, shapes and dtypes of tensors that go from a file to a model.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_diffusers_convert::{Checkpoint, TensorFile};
use candle_diffusers_loaders::{Error, StateDict};

/// A state dict of the file that safetensors itself writes for `tensors`.
fn state_dict(tensors: &[(&str, Tensor)]) -> StateDict {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = TensorFile::from_bytes("unet/model.safetensors", bytes).unwrap();
    StateDict::new(Checkpoint::from_file(file))
}

fn numbers(shape: &[usize], dtype: DType) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap().reshape(shape).unwrap().to_dtype(dtype).unwrap()
}

fn to_vec(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_float_dtype_loads_as_every_other() {
    let floats = [DType::F64, DType::F32, DType::F16, DType::BF16];
    for stored in floats {
        let weights =
            state_dict(&[("odd", numbers(&[1], DType::U8)), ("conv.weight", numbers(&[2, 3], stored))]);
        for asked in floats {
            let builder = weights.var_builder(asked, &Device::Cpu);
            let tensor = builder.pp("conv").get((2, 3), "weight").unwrap();
            assert_eq!((tensor.dtype(), tensor.dims()), (asked, [2, 3].as_slice()));
            assert_eq!(to_vec(&tensor), [0., 1., 2., 3., 4., 5.]);
        }
    }
}

#[test]
fn a_missing_tensor_is_named_with_file_shape_and_the_nearest_names() {
    let weights = state_dict(&[
        ("down_blocks.0.resnets.0.conv1.weight", numbers(&[1], DType::F32)),
        ("down_blocks.0.resnets.0.conv1.bias", numbers(&[1], DType::F32)),
        ("mid_block.attentions.0.proj.weight", numbers(&[1], DType::F32)),
    ]);
    let builder = weights.var_builder(DType::F32, &Device::Cpu);
    let error = builder.get((4, 8), "down_blocks.0.resnets.0.conv2.weight").unwrap_err().to_string();
    for part in [
        "unet/model.safetensors has no tensor down_blocks.0.resnets.0.conv2.weight",
        "(of shape [4, 8])",
        "most like it are down_blocks.0.resnets.0.conv1.weight, down_blocks.0.resnets.0.conv1.bias",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("mid_block"), "{error}");
    assert!(matches!(weights.take_failure(), Some(Error::MissingTensor { .. })));
    assert!(weights.take_failure().is_none());
}

#[test]
fn the_nearest_names_are_found_in_files_without_the_prefix() {
    let weights = state_dict(&[
        ("encoder.layers.0.mlp.fc1.weight", numbers(&[1], DType::F32)),
        ("encoder.layers.0.mlp.fc1.bias", numbers(&[1], DType::F32)),
    ]);
    let builder = weights.var_builder(DType::F32, &Device::Cpu);
    let error = builder.get(1, "text_model.encoder.layers.0.mlp.fc2.bias").unwrap_err().to_string();
    assert!(error.contains("most like it are encoder.layers.0.mlp.fc1.bias"), "{error}");
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let weights = state_dict(&[("conv_in.weight", numbers(&[4, 9], DType::F32))]);
    let error =
        weights.var_builder(DType::F32, &Device::Cpu).get((4, 4), "conv_in.weight").unwrap_err().to_string();
    for part in ["unet/model.safetensors", "conv_in.weight", "[4, 9]", "[4, 4]"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn extra_tensors_are_counted_and_named_but_not_positions() {
    let mut tensors: Vec<(String, Tensor)> =
        (0..7).map(|i| (format!("extra.{i}"), numbers(&[1], DType::F32))).collect();
    tensors.push(("embeddings.position_ids".into(), numbers(&[1], DType::I64)));
    tensors.push(("text_model.embeddings.position_ids".into(), numbers(&[1], DType::I64)));
    tensors.push(("used.weight".into(), numbers(&[1], DType::F32)));
    let tensors: Vec<(&str, Tensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let weights = state_dict(&tensors);
    let builder = weights.var_builder(DType::F32, &Device::Cpu);
    builder.get(1, "used.weight").unwrap();
    let error = weights.check_all_used().unwrap_err().to_string();
    for part in
        ["unet/model.safetensors has tensors", "(7): extra.0, extra.1, extra.2, extra.3, extra.4, ..."]
    {
        assert!(error.contains(part), "{error}");
    }
    for i in 0..7 {
        builder.get(1, &format!("extra.{i}")).unwrap();
    }
    weights.check_all_used().unwrap();
}

#[test]
fn text_encoders_load_with_and_without_prefix() {
    for stored in ["text_model.encoder.weight", "encoder.weight"] {
        let weights = state_dict(&[(stored, numbers(&[2], DType::F32))]);
        let builder = weights.var_builder(DType::F32, &Device::Cpu);
        assert!(builder.pp("text_model").contains_tensor("encoder.weight"));
        assert!(!builder.contains_tensor("text_model.encoder.bias"));
        builder.pp("text_model").get(2, "encoder.weight").unwrap();
        builder.get(2, "encoder.weight").unwrap();
        weights.check_all_used().unwrap();
    }
}

#[test]
fn old_attention_names_load() {
    let old = "encoder.mid_block.attentions.0";
    let now = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
    let names: Vec<String> = now
        .iter()
        .flat_map(|(name, _)| [format!("{old}.{name}.weight"), format!("{old}.{name}.bias")])
        .collect();
    let tensors: Vec<(&str, Tensor)> =
        names.iter().map(|name| (name.as_str(), numbers(&[2], DType::F32))).collect();
    let weights = state_dict(&tensors);
    let builder = weights.var_builder(DType::F32, &Device::Cpu).pp(old);
    for (_, name) in now {
        builder.pp(name).get(2, "weight").unwrap();
        builder.pp(name).get(2, "bias").unwrap();
    }
    weights.check_all_used().unwrap();
}

#[test]
fn tensors_load_from_many_threads() {
    let names: Vec<String> = (0..64).map(|i| format!("blocks.{i}.weight")).collect();
    let tensors: Vec<(&str, Tensor)> =
        names.iter().map(|name| (name.as_str(), numbers(&[100], DType::F16))).collect();
    let weights = state_dict(&tensors);
    std::thread::scope(|scope| {
        for part in names.chunks(16) {
            let builder = weights.var_builder(DType::F32, &Device::Cpu);
            scope.spawn(move || part.iter().for_each(|name| drop(builder.get(100, name).unwrap())));
        }
    });
    weights.check_all_used().unwrap();
}

#[test]
fn a_dtype_that_nothing_computes_with_is_named() {
    let header = r#"{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 8]);
    let file = TensorFile::from_bytes("model.safetensors", bytes).unwrap();
    let weights = StateDict::new(Checkpoint::from_file(file));
    let error = weights.load("a", None, DType::F32, &Device::Cpu).unwrap_err();
    assert!(matches!(&error, Error::UnsupportedDtype { .. }) && error.to_string().contains("C64"), "{error}");
}
