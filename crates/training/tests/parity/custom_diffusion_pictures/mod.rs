//! Pictures at random sizes beside those of Custom Diffusion's script; its masks are compared where ours are made, in `recipes/area_mask.rs`.

use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, assert_close};
use candle_diffusers_training::dataset::{
    Area, Batch, Captions, Dataset, DatasetOptions, Fit, Flip, Position, TransformOptions,
};
use image::RgbImage;
use serde_json::Value;

#[test]
fn pictures_are_those_of_the_script() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/custom_diffusion_pictures");
    let fixture = Fixture::open(format!("{folder}/custom_diffusion_pictures.safetensors"));
    let settings: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{folder}/cases.json")).unwrap()).unwrap();
    let size = settings["size"].as_u64().unwrap() as u32;
    let (height, width, _) = fixture.get("picture").dims3().unwrap();
    let pixels = fixture.get("picture").flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let picture = RgbImage::from_raw(width as u32, height as u32, pixels).unwrap();
    let pictures = tempfile::tempdir().unwrap();
    picture.save(pictures.path().join("picture.png")).unwrap();
    let options = DatasetOptions {
        captions: Captions::Prompt(settings["caption"].as_str().unwrap().to_string()),
        resolution: size,
        transform: TransformOptions { flip: Flip::AfterCrop, fit: Fit::RandomSize, ..Default::default() },
        ..Default::default()
    };
    let dataset = Dataset::open(pictures.path(), options).unwrap();
    let places = fixture.get(&format!("{size}/places")).to_vec2::<i64>().unwrap();
    for (index, place) in places.into_iter().enumerate() {
        let seed = settings["seeds"][index].as_u64().unwrap();
        let sample = dataset.sample(0, &mut TorchGenerator::new(seed)).unwrap();
        assert_eq!(sample.caption, settings["captions"][index].as_str().unwrap(), "seed {seed}");
        let [scale, top, left] = [0, 1, 2].map(|field| place[field] as u32);
        let area = (scale <= size).then_some(Area { left, top, width: scale, height: scale });
        assert_eq!(sample.area, area, "seed {seed}");
        let batch = Batch { samples: vec![sample], next: Position::default(), warnings: Vec::new() };
        let actual = batch.pixel_values().unwrap().squeeze(0).unwrap();
        let expected = fixture.get("pixel_values").get(index).unwrap();
        // The same of 256 levels, which lie 0.008 apart; the script divides by 127.5 in float64.
        assert_close(&format!("seed {seed}"), &actual, &expected, 1e-6);
    }
}
