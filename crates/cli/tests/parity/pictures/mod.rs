//! Pictures of the program beside those of the reference library.

use candle_diffusers_test_support::Fixture;

use crate::program::Workplace;

const PROMPT: &str = "a large green star on the left on a black background";

/// Of 255; see "What never bends".
const PIXEL_BOUND: f64 = 2.0;

fn fixture() -> Fixture {
    Fixture::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/pictures/pictures.safetensors"))
}

#[test]
fn every_picture_is_the_references() {
    let (workplace, fixture) = (Workplace::new(), fixture());
    for flags in fixture.names() {
        let common = ["generate", PROMPT, "--steps", "8", "--seed", "3"];
        workplace.succeed(common.into_iter().chain(flags.split(' ')));
        let picture = image::open(workplace.path("out.png")).unwrap().to_rgb8();
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        assert_eq!(fixture.get(flags).dims(), [height, width, 3], "{flags}");
        let differences =
            picture.as_raw().iter().zip(fixture.values(flags)).map(|(a, e)| (f64::from(*a) - e).abs());
        let worst = differences.fold(0.0, f64::max);
        assert!(worst <= PIXEL_BOUND, "{flags}: a pixel is {worst} of 255 away");
    }
}

#[test]
fn every_name_of_a_scheduler_is_compared() {
    let fixture = fixture();
    let help = Workplace::new().succeed(["generate", "--help"]).stdout;
    let after = help.split_once("--scheduler").unwrap().1;
    let names = after.split_once("[possible values: ").unwrap().1.split_once(']').unwrap().0;
    let names: Vec<&str> = names.split(',').map(str::trim).collect();
    for name in &names {
        assert!(fixture.contains(&format!("--scheduler {name}")), "{name} is not in export.py");
    }
    let promised =
        ["ddpm", "ddim", "pndm", "euler", "euler-ancestral", "dpmpp-2m", "dpmpp-2m-karras", "dpmpp-sde"];
    for name in promised {
        assert!(names.contains(&name), "{name}");
    }
}
