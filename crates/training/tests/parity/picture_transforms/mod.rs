//! Pictures brought to size beside torchvision's transforms.

use candle_diffusers_pipelines::{Filter, from_pictures, normalize};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, assert_close};
use candle_diffusers_training::dataset::{Flip, TransformOptions};
use image::RgbImage;
use serde_json::Value;

#[test]
fn pictures_are_those_of_torchvision() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/picture_transforms");
    let fixture = Fixture::open(format!("{folder}/picture_transforms.safetensors"));
    let settings: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{folder}/cases.json")).unwrap()).unwrap();
    let resolution = settings["resolution"].as_u64().unwrap() as u32;
    for size in settings["sizes"].as_array().unwrap() {
        let [width, height] = [0, 1].map(|index| size[index].as_u64().unwrap() as u32);
        let name = format!("{width}x{height}");
        let pixels = fixture.get(&name).flatten_all().unwrap().to_vec1::<u8>().unwrap();
        let picture = RgbImage::from_raw(width, height, pixels).unwrap();
        for (index, case) in settings["cases"].as_array().unwrap().iter().enumerate() {
            let options = TransformOptions {
                filter: match case["filter"].as_str().unwrap() {
                    "bilinear" => Filter::Bilinear,
                    "bicubic" => Filter::Bicubic,
                    _ => Filter::Lanczos,
                },
                center_crop: case["center_crop"].as_bool().unwrap(),
                flip: if case["flip"].as_bool().unwrap() { Flip::AfterCrop } else { Flip::Never },
                ..Default::default()
            };
            let mut generator = TorchGenerator::new(index as u64);
            for turn in 0..2 {
                let cut = options.choose([width, height], [resolution; 2], &mut generator).unwrap();
                let actual = from_pictures(&[cut.apply(&picture).unwrap()]).unwrap();
                let actual = normalize(&actual).unwrap().squeeze(0).unwrap();
                let expected = format!("{name}/{index}/{turn}");
                assert_close(&expected, &actual, fixture.get(&expected), 1e-6);
            }
        }
    }
}
