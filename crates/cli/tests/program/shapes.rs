//! The model in the program paints what it is told: the 32 prompts of `check.tsv`, judged by the rule of the model's README.

use std::fs;

use image::RgbImage;

use crate::program::{Workplace, shapes};

const PALETTE: [(&str, [f64; 3]); 8] = [
    ("red", [220.0, 40.0, 40.0]),
    ("orange", [240.0, 140.0, 30.0]),
    ("yellow", [245.0, 220.0, 50.0]),
    ("green", [50.0, 170.0, 70.0]),
    ("blue", [50.0, 90.0, 220.0]),
    ("purple", [140.0, 60.0, 180.0]),
    ("white", [245.0, 245.0, 245.0]),
    ("black", [20.0, 20.0, 20.0]),
];

/// The palette's colour that is nearest to the mean of the square of `size` pixels at `(x, y)`.
pub(crate) fn colour(picture: &RgbImage, x: u32, y: u32, size: u32) -> &'static str {
    let mut mean = [0.0; 3];
    for (x, y) in (x..x + size).flat_map(|x| (y..y + size).map(move |y| (x, y))) {
        for (mean, value) in mean.iter_mut().zip(picture.get_pixel(x, y).0) {
            *mean += f64::from(value) / f64::from(size * size);
        }
    }
    let distance = |colour: &[f64; 3]| -> f64 { colour.iter().zip(mean).map(|(c, m)| (c - m).powi(2)).sum() };
    let nearest = PALETTE.iter().min_by(|(_, a), (_, b)| distance(a).total_cmp(&distance(b)));
    nearest.unwrap().0
}

#[test]
fn all_of_32_prompts_are_painted() {
    let table = fs::read_to_string(shapes().join("check.tsv")).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    let prompts: Vec<String> = rows
        .iter()
        .map(|row| format!("a large {} {} in the center on a {} background", row[1], row[2], row[3]))
        .collect();
    assert_eq!(prompts.len(), 32);

    let workplace = Workplace::new();
    fs::write(workplace.path("prompts.txt"), prompts.join("\n")).unwrap();
    // Picture i has the seed 0 + i, as the check asks for.
    let flags = ["--steps", "20", "--guidance-scale", "4", "--seed", "0", "--dtype", "f32"];
    workplace.succeed([&["generate", "--prompts-file", "prompts.txt"][..], &flags].concat());

    let mut wrong = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let picture = image::open(workplace.path(&format!("out-{index}.png"))).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (64, 64));
        let middle = (64 - 7) / 2;
        let painted = (colour(&picture, middle, middle, 7), colour(&picture, 0, 0, 5));
        if painted != (row[1], row[3]) {
            wrong.push(format!("{}: painted {} on {}", prompts[index], painted.0, painted.1));
        }
    }
    assert!(wrong.is_empty(), "{} of 32 wrong: {}", wrong.len(), wrong.join("; "));
}
