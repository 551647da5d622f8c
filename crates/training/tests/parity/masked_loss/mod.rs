//! Ten steps of a LoRA with cloneofsimo's masked loss.

use candle_core::Tensor;
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::StableDiffusionPipeline;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, assert_close};
use candle_diffusers_training::recipes::{Denoising, DenoisingOptions, Example};
use candle_diffusers_training::{
    AdamW, AdamWConfig, LoraConfig, LrSchedule, LrScheduleName, LrScheduleOptions, Parameter, ParameterGroup,
    TrainedLora, Trainer, TrainerOptions,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/masked_loss");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/text_to_image/sd1");

#[test]
fn losses_and_weights_are_those_of_the_reference() {
    let fixture = Fixture::open(format!("{FOLDER}/masked_loss.safetensors"));
    let repository = Repository::folder(MODEL).unwrap();
    let models = StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap();
    let config = LoraConfig::new(1, &["to_q", "to_v"]);
    let lora = TrainedLora::attach(&models.unet, "unet", &config, &mut TorchGenerator::new(0)).unwrap();
    let parameters = lora.parameters();
    for Parameter { name, var } in &parameters {
        var.set(fixture.get(&format!("start/{name}"))).unwrap();
    }
    let groups = vec![ParameterGroup { parameters, learning_rate: 1e-2, weight_decay: 1e-2 }];
    let schedule = LrSchedule::new(LrScheduleName::Constant, LrScheduleOptions::default()).unwrap();
    let optimizer = Box::new(AdamW::new(AdamWConfig::default()).unwrap());
    let (options, generator) = (TrainerOptions::default(), TorchGenerator::new(42));
    let mut trainer = Trainer::new(groups, optimizer, schedule, None, options, generator).unwrap();
    let denoising = Denoising::new(&models, DenoisingOptions::default()).unwrap();
    let example = |(index, caption): (usize, &str)| Example {
        pixel_values: fixture.get("pictures").get(index).unwrap(),
        caption: caption.to_string(),
        original_size: (32, 32),
        crop_top_left: (0, 0),
        key: None,
        others: Vec::new(),
        area: None,
    };
    let examples: Vec<Example> = ["a star", "circle"].into_iter().enumerate().map(example).collect();
    let mask = fixture.get("mask");
    let mut worst: f64 = 0.0;
    for (step, expected) in fixture.values("losses").into_iter().enumerate() {
        let report =
            trainer.step(|generator| denoising.masked_loss(&examples, mask, 1.3, generator)).unwrap();
        worst = worst.max((report.loss / expected - 1.0).abs());
        assert!(worst < 1e-4, "step {step}: {} and {expected}", report.loss);
    }
    for Parameter { name, var } in &trainer.groups[0].parameters {
        assert_close(name, var, fixture.get(&format!("end/{name}")), 1e-5);
    }
    println!("masked: {} weights, losses within {worst:.1e}", trainer.groups[0].parameters.len());

    let loss = |mask: Option<&Tensor>| {
        let mut generator = TorchGenerator::new(3);
        let loss = match mask {
            Some(mask) => denoising.masked_loss(&examples, mask, 1.0, &mut generator),
            None => denoising.loss(&examples, &mut generator),
        };
        loss.map(|loss| loss.to_scalar::<f32>().unwrap())
    };
    let plain = loss(None).unwrap();
    let white = loss(Some(&mask.ones_like().unwrap())).unwrap();
    assert!((plain / white - 1.0).abs() < 1e-6, "a white mask leaves nothing out: {plain} and {white}");
    let error = loss(Some(&mask.narrow(0, 0, 1).unwrap())).unwrap_err().to_string();
    assert_eq!(error, "mask has shape [1, 1, 32, 32]; expected (2, 1, height, width), one for each picture");
}
