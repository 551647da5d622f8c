//! Pictures with jittered colours beside the transforms of cloneofsimo's lora, pixel for pixel.

use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::Fixture;
use candle_diffusers_training::dataset::{Captions, Dataset, DatasetOptions, TransformOptions};
use image::RgbImage;
use serde_json::Value;

#[test]
fn pictures_are_those_of_torchvision() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/color_jitter");
    let fixture = Fixture::open(format!("{folder}/color_jitter.safetensors"));
    let settings: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{folder}/cases.json")).unwrap()).unwrap();
    let bytes = |name: &str| fixture.get(name).flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let options = DatasetOptions {
        captions: Captions::None,
        resolution: settings["resolution"].as_u64().unwrap() as u32,
        transform: TransformOptions { center_crop: true, color_jitter: true, ..Default::default() },
        ..Default::default()
    };
    for size in settings["sizes"].as_array().unwrap() {
        let [width, height] = [0, 1].map(|index| size[index].as_u64().unwrap() as u32);
        let name = format!("{width}x{height}");
        let pictures = tempfile::tempdir().unwrap();
        let picture = RgbImage::from_raw(width, height, bytes(&name)).unwrap();
        picture.save(pictures.path().join("picture.png")).unwrap();
        let dataset = Dataset::open(pictures.path(), options.clone()).unwrap();
        for seed in settings["seeds"].as_array().unwrap() {
            let seed = seed.as_u64().unwrap();
            let mut generator = TorchGenerator::new(seed);
            for turn in 0..2 {
                let actual = dataset.sample(0, &mut generator).unwrap().picture.into_raw();
                let expected = bytes(&format!("{name}/{seed}/{turn}"));
                assert_eq!(actual.len(), expected.len());
                // Exact: both compute in float32, in the same order, and cut what is behind the point off.
                let others = actual.iter().zip(&expected).filter(|(actual, expected)| actual != expected);
                assert_eq!(others.count(), 0, "values that differ of {name}, seed {seed}, turn {turn}");
            }
        }
    }
}
