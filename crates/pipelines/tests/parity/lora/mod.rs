//! Pictures with LoRA files of every layout: those that the definition gives.

use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{Schedule, StableDiffusionPipeline, TextToImage, seeded_generators};
use candle_diffusers_test_support::Fixture;
use image::RgbImage;

use crate::painted::{go_on, worst_pixel};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/lora");

const LAYOUTS: [(&str, &str); 7] = [
    ("kohya", "kohya.safetensors"),
    ("kohya_original", "kohya_original.safetensors"),
    ("diffusers", "diffusers.safetensors"),
    ("diffusers_old", "diffusers_old.safetensors"),
    ("peft", "peft"),
    ("cloneofsimo", "cloneofsimo.safetensors"),
    ("cloneofsimo_list", "cloneofsimo_list.pt"),
];

fn load() -> StableDiffusionPipeline {
    let repository = Repository::folder(format!("{FOLDER}/../text_to_image/sd1")).unwrap();
    StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap()
}

fn paint(pipeline: &mut StableDiffusionPipeline) -> Vec<RgbImage> {
    let request = TextToImage {
        prompts: vec!["a large red circle on a blue background".into()],
        schedule: Schedule::Steps(5),
        guidance_scale: Some(4.0),
        width: Some(32),
        height: Some(32),
        ..Default::default()
    };
    pipeline.generate(&request, &mut seeded_generators(0, 1), &mut go_on).unwrap().images
}

#[test]
fn every_layout_paints_what_the_definition_gives() {
    let expected = Fixture::open(format!("{FOLDER}/lora.safetensors"));
    let mut pipeline = load();
    let before = paint(&mut pipeline);
    assert!(worst_pixel(&before, expected.get("without")) <= 2.0);
    for (name, file) in LAYOUTS {
        pipeline.load_lora_weights(format!("{FOLDER}/{file}"), name).unwrap();
        let beside = worst_pixel(&paint(&mut pipeline), expected.get(name));
        pipeline.fuse_lora().unwrap();
        let fused = worst_pixel(&paint(&mut pipeline), expected.get(name));
        println!("{name}: beside {beside} of 255, fused {fused} of 255");
        assert!(beside <= 2.0 && fused <= 2.0, "{name}: beside {beside}, fused {fused}");
        // A weight that is a little off is seen.
        pipeline.set_adapters(&[(name, 0.9)]).unwrap();
        assert!(worst_pixel(&paint(&mut pipeline), expected.get(name)) > 10.0, "{name} hardly matters");
        pipeline.set_adapters(&[(name, 1.0)]).unwrap();
        pipeline.unfuse_lora().unwrap();
        assert_eq!(worst_pixel(&paint(&mut pipeline), expected.get(name)), beside, "{name}: unfused");
    }
    pipeline.unload_lora_weights();
    assert!(paint(&mut pipeline) == before, "unloaded, the picture is another");
}

#[test]
fn loading_makes_one_active_and_several_have_weights() {
    let expected = Fixture::open(format!("{FOLDER}/lora.safetensors"));
    let mut pipeline = load();
    for name in ["diffusers", "peft"] {
        let file = LAYOUTS.iter().find(|(layout, _)| *layout == name).unwrap().1;
        pipeline.load_lora_weights(format!("{FOLDER}/{file}"), name).unwrap();
    }
    let strengths = |pipeline: &StableDiffusionPipeline| -> Vec<Option<f64>> {
        pipeline.list_adapters().map(|adapter| adapter.strength).collect()
    };
    // As in diffusers.
    assert_eq!(strengths(&pipeline), [None, Some(1.0)]);
    assert!(worst_pixel(&paint(&mut pipeline), expected.get("peft")) <= 2.0);
    pipeline.set_adapters(&[("diffusers", 0.6), ("peft", -0.3)]).unwrap();
    assert_eq!(strengths(&pipeline), [Some(0.6), Some(-0.3)]);
    assert!(worst_pixel(&paint(&mut pipeline), expected.get("two")) <= 2.0);
    pipeline.loras.fuse_permanently().unwrap();
    assert!(worst_pixel(&paint(&mut pipeline), expected.get("two")) <= 2.0);
    assert_eq!(pipeline.list_adapters().count(), 0);
}
