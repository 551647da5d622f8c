//! A tiny autoencoder with a table of latents.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_models::{VQModel, VQModelConfig};
use candle_diffusers_test_support::{Fixture, assert_close};
use candle_nn::VarBuilder;
use serde_json::{Value, json};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/vq_model");

fn models() -> (Vec<(String, VQModel)>, Fixture) {
    let fixture = Fixture::open(format!("{FOLDER}/vq_model.safetensors"));
    let configs: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/configs.json")).unwrap()).unwrap();
    let load = |(name, config): (&String, &Value)| {
        let tensors = fixture.state_dict(&format!("{name}.model."));
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        (name.clone(), VQModel::new(&VQModelConfig::from_json(config).unwrap(), weights).unwrap())
    };
    (configs.as_object().unwrap().iter().map(load).collect(), fixture)
}

#[test]
fn encoding_and_decoding_equal_the_reference() {
    let (models, fixture) = models();
    assert_eq!(models.len(), 2);
    for (name, model) in models {
        let get = |what: &str| fixture.get(&format!("{name}.{what}"));
        assert_close(&name, &model.encode(get("x")).unwrap(), get("latents"), 1e-5);
        let decoded = model.decode(get("latents")).unwrap();
        assert_close(&name, &decoded, get("decoded"), 1e-5);
        let second = model.decode(&get("latents").narrow(0, 1, 1).unwrap()).unwrap();
        assert_close(&name, &second, &decoded.narrow(0, 1, 1).unwrap(), 0.0);
    }
}

#[test]
fn all_layers_are_listed() {
    let (models, fixture) = models();
    for (name, model) in models {
        let state_dict = fixture.state_dict(&format!("{name}.model."));
        crate::assert_lists_all_layers(&model, &state_dict, &["quantize.embedding.weight"]);
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let default = VQModelConfig::from_json(&json!({})).unwrap();
    assert_eq!((default.num_vq_embeddings, default.vq_embed_dim), (256, 3));
    assert_eq!(default.autoencoder.latent_channels, 3);
    for (config, message) in [
        (json!({"norm_type": "spatial"}), "`norm_type` is \"spatial\", expected \"group\""),
        (json!({"lookup_from_codebook": true}), "`lookup_from_codebook` is true"),
        (json!({"shift_factor": 1.0}), "`shift_factor` is 1.0, expected no such field"),
        (json!({"scaling_factor": 0}), "`scaling_factor` is 0, expected a number other than 0"),
    ] {
        let error = VQModelConfig::from_json(&config).unwrap_err().to_string();
        assert!(error.contains("VQModel config") && error.contains(message), "{error}");
    }
    let (models, _) = models();
    let zeros = Tensor::zeros((1, 4, 4, 4), DType::F32, &Device::Cpu).unwrap();
    for (_, model) in models {
        assert!(
            model
                .decode(&zeros)
                .unwrap_err()
                .to_string()
                .contains("latents is [1, 4, 4, 4], expected (batch")
        );
        assert!(
            model.encode(&zeros).unwrap_err().to_string().contains("x is [1, 4, 4, 4], expected (batch, 3")
        );
    }
}
