//! Ten steps of a ControlNet, beside the reference's scripts; then the folder that is written.

use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::StableDiffusionPipeline;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, values};
use candle_diffusers_training::Parameter;
use candle_diffusers_training::recipes::{
    ControlNetDenoising, Denoising, DenoisingOptions, Example, TrainedControlNet,
};
use serde_json::{Map, Value};

use crate::ten_steps::Reference;

fn repository(name: &str) -> Repository {
    Repository::folder(format!("{}/../pipelines/tests/parity/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn example(fixture: &Fixture, index: usize, caption: &str) -> Example {
    Example {
        pixel_values: fixture.get("pictures").get(index).unwrap(),
        caption: caption.to_string(),
        original_size: (64, 48),
        crop_top_left: (3, 2),
        key: Some(index as u64),
        others: vec![fixture.get("conditions").get(index).unwrap()],
        area: None,
    }
}

#[test]
fn losses_and_weights_are_those_of_the_reference() {
    let reference = Reference::open("controlnet");
    for (name, case) in reference.cases() {
        let (model, options) = (repository(case["model"].as_str().unwrap()), LoadOptions::default());
        let mut models = StableDiffusionPipeline::load(&model, &options).unwrap();
        if let Some(prediction_type) = case["prediction_type"].as_str() {
            let change = Map::from_iter([("prediction_type".to_string(), prediction_type.into())]);
            models.set_scheduler("DDPMScheduler", &change).unwrap();
        }
        let trained = match case["controlnet"].as_str() {
            Some(folder) => TrainedControlNet::load(&repository(folder), &options).unwrap(),
            None => TrainedControlNet::from_unet(&model, &options, TorchGenerator::new(0)).unwrap(),
        };
        reference.begin(name, &trained.parameters);
        let denoising = ControlNetDenoising::new(&models, &trained.net, DenoisingOptions::default()).unwrap();
        reference.check(name, trained.parameters.clone(), 1e-3, |batch, generator| {
            let batch = reference.batch(batch);
            let examples: Vec<Example> =
                batch.iter().map(|(index, caption)| example(&reference.fixture, *index, caption)).collect();
            denoising.loss(&examples, generator)
        });

        let folder = tempfile::tempdir().unwrap();
        trained.save(folder.path()).unwrap();
        let written = Repository::folder(folder.path()).unwrap();
        let again = TrainedControlNet::load(&written, &options).unwrap();
        for (old, new) in trained.parameters.iter().zip(&again.parameters) {
            assert_eq!((&old.name, values(&old.var)), (&new.name, values(&new.var)));
        }
        models.load_controlnet(&written, None).unwrap();
        let config: Value = written.read_json("config.json").unwrap();
        for (field, expected) in case["config"].as_object().into_iter().flatten() {
            // The reference writes its defaults too.
            let is_same = config.get(field).is_none_or(|value| value == expected);
            assert!(is_same, "{field}: {} and {expected}", config[field]);
        }
    }
}

#[test]
fn a_new_net_adds_nothing_and_begins_as_torchs() {
    let (model, options) = (repository("text_to_image/sd1"), LoadOptions::default());
    let models = StableDiffusionPipeline::load(&model, &options).unwrap();
    let trained = TrainedControlNet::from_unet(&model, &options, TorchGenerator::new(3)).unwrap();
    let fixture = Reference::open("controlnet").fixture;
    let is_new = |parameter: &&Parameter| parameter.name.contains("controlnet_cond_embedding");
    for Parameter { name, var } in trained.parameters.iter().filter(is_new) {
        let widest = |values: Vec<f64>| values.iter().fold(0.0, |widest: f64, value| widest.max(value.abs()));
        let (ours, torch) = (widest(values(var)), widest(fixture.values(&format!("from_unet/start/{name}"))));
        assert!(ours == torch || (0.7..1.4).contains(&(ours / torch)), "{name}: {ours} and {torch}");
    }
    let mut examples = [example(&fixture, 0, "a star")];
    let steered = ControlNetDenoising::new(&models, &trained.net, DenoisingOptions::default()).unwrap();
    let plain = Denoising::new(&models, DenoisingOptions::default()).unwrap();
    let [with, without] = [
        steered.loss(&examples, &mut TorchGenerator::new(1)).unwrap(),
        plain.loss(&examples, &mut TorchGenerator::new(1)).unwrap(),
    ]
    .map(|loss| f64::from(loss.to_scalar::<f32>().unwrap()));
    assert!((with / without - 1.0).abs() < 1e-5, "{with} and {without}");
    examples[0].others.clear();
    let error = steered.loss(&examples, &mut TorchGenerator::new(1)).unwrap_err().to_string();
    assert_eq!(error, "others is 0; expected 1, one for each example");
}

#[test]
fn a_model_that_sees_more_than_latents_is_refused() {
    let unet = repository("inpainting/sd1_unet");
    let model = tempfile::tempdir().unwrap();
    for (part, from) in [
        ("vae", repository("text_to_image/sd1").read_json("vae/config.json")),
        ("unet", unet.read_json("config.json")),
    ] {
        let from: Value = from.unwrap();
        std::fs::create_dir(model.path().join(part)).unwrap();
        std::fs::write(model.path().join(part).join("config.json"), from.to_string()).unwrap();
    }
    let model = Repository::folder(model.path()).unwrap();
    let error = TrainedControlNet::from_unet(&model, &LoadOptions::default(), TorchGenerator::new(0));
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "in_channels of the UNet is 9; expected 4: ControlNets steer models that paint");
}
