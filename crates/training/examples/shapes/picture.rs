//! Pictures of one figure on a background, and what they show in words.

use image::imageops::{FilterType, resize};
use image::{Rgb, RgbImage};

/// Width and height of a picture.
pub(crate) const SIDE: u32 = 64;
/// Pictures are drawn this much larger, and reduced.
const OVERSAMPLING: u32 = 4;
/// How far a picture's colours may be from the palette's.
const VARIATION: f32 = 8.0;

/// Colours by name: red, green and blue. The first are those that the model is judged by; the others let it know what lies between them, so that it can be taught
/// more.
pub(crate) const PALETTE: [(&str, [f32; 3]); 17] = [
    ("red", [220.0, 40.0, 40.0]),
    ("orange", [240.0, 140.0, 30.0]),
    ("yellow", [245.0, 220.0, 50.0]),
    ("green", [50.0, 170.0, 70.0]),
    ("blue", [50.0, 90.0, 220.0]),
    ("purple", [140.0, 60.0, 180.0]),
    ("white", [245.0, 245.0, 245.0]),
    ("black", [20.0, 20.0, 20.0]),
    ("pink", [250.0, 160.0, 190.0]),
    ("brown", [130.0, 80.0, 40.0]),
    ("grey", [128.0, 128.0, 128.0]),
    ("cyan", [70.0, 200.0, 220.0]),
    ("magenta", [220.0, 60.0, 170.0]),
    ("lime", [160.0, 220.0, 60.0]),
    ("navy", [30.0, 40.0, 110.0]),
    ("maroon", [120.0, 25.0, 40.0]),
    ("olive", [120.0, 120.0, 40.0]),
];
/// How many of the palette the model is judged by.
pub(crate) const JUDGED: usize = 8;

const SHAPES: [&str; 4] = ["circle", "square", "triangle", "star"];

/// The places that have names, as parts of the side.
const PLACES: [(&str, f32, f32); 5] = [
    ("in the center", 0.5, 0.5),
    ("on the left", 0.28, 0.5),
    ("on the right", 0.72, 0.5),
    ("at the top", 0.5, 0.28),
    ("at the bottom", 0.5, 0.72),
];

/// How many random numbers a picture and its caption are made of.
pub(crate) const NUMBERS: usize = 16;

/// A picture and what it shows.
pub(crate) struct Drawing {
    /// `SIDE` by `SIDE`.
    pub(crate) picture: RgbImage,
    /// "a small red circle on the left on a blue background".
    pub(crate) caption: String,
}

/// Draws what `numbers` say, each from 0 to 1.
pub(crate) fn draw(numbers: &[f32; NUMBERS]) -> Drawing {
    let [size, radius, shape, figure, ground, place, x, y, says_size, says_place, colours @ ..] = numbers;
    let side = SIDE as f32;
    let is_large = *size < 0.5;
    let radius = if is_large { 18.0 + 8.0 * radius } else { 9.0 + 5.0 * radius };
    let shape = choose(*shape, SHAPES.len());
    let figure = choose_colour(*figure);
    let ground = match choose_colour(*ground) {
        same if same == figure => (same + 1) % JUDGED,
        other => other,
    };
    // Large figures have a name for their place in the center only; one in six places has no name.
    let named = if is_large { 1 } else { PLACES.len() };
    let place = if *place < 5.0 / 6.0 { PLACES[..named].get(choose(place * 1.2, named)) } else { None };
    let (x, y) = match place {
        Some((_, left, top)) => (left * side + 6.0 * x - 3.0, top * side + 6.0 * y - 3.0),
        None => (radius + (side - 2.0 * radius) * x, radius + (side - 2.0 * radius) * y),
    };
    let varied = |colour: usize, numbers: &[f32]| -> Rgb<u8> {
        let channel = |i: usize| PALETTE[colour].1[i] + VARIATION * (2.0 * numbers[i] - 1.0);
        Rgb([0, 1, 2].map(|i| channel(i).clamp(0.0, 255.0) as u8))
    };
    let (figure_colour, ground_colour) = (varied(figure, &colours[..3]), varied(ground, &colours[3..]));

    let scale = OVERSAMPLING as f32;
    let mut large = RgbImage::from_pixel(SIDE * OVERSAMPLING, SIDE * OVERSAMPLING, ground_colour);
    let outline = outline(SHAPES[shape], radius);
    for (column, row, pixel) in large.enumerate_pixels_mut() {
        let point = ((column as f32 + 0.5) / scale - x, (row as f32 + 0.5) / scale - y);
        if is_inside(point, radius, outline.as_deref()) {
            *pixel = figure_colour;
        }
    }
    let picture = resize(&large, SIDE, SIDE, FilterType::Lanczos3);

    let mut words = vec!["a"];
    if *says_size < 0.7 {
        words.push(if is_large { "large" } else { "small" });
    }
    words.extend([PALETTE[figure].0, SHAPES[shape]]);
    if let Some((name, ..)) = place.filter(|_| *says_place < 0.9) {
        words.push(name);
    }
    words.extend(["on a", PALETTE[ground].0, "background"]);
    Drawing { picture, caption: words.join(" ") }
}

fn choose(number: f32, count: usize) -> usize {
    ((number * count as f32) as usize).min(count - 1)
}

/// One of those that the model is judged by in seven of ten cases.
fn choose_colour(number: f32) -> usize {
    match number < 0.7 {
        true => choose(number / 0.7, JUDGED),
        false => JUDGED + choose((number - 0.7) / 0.3, PALETTE.len() - JUDGED),
    }
}

/// The corners around the middle; none for a circle.
fn outline(shape: &str, radius: f32) -> Option<Vec<(f32, f32)>> {
    let corners = |count: usize, radius_of: &dyn Fn(usize) -> f32, first: f32| {
        let corner = |i: usize| {
            let angle = first + std::f32::consts::TAU * i as f32 / count as f32;
            (radius_of(i) * angle.cos(), radius_of(i) * angle.sin())
        };
        (0..count).map(corner).collect()
    };
    let up = -std::f32::consts::FRAC_PI_2;
    match shape {
        "square" => {
            let half = 0.85 * radius;
            Some(vec![(-half, -half), (half, -half), (half, half), (-half, half)])
        }
        "triangle" => Some(corners(3, &|_| radius, up)),
        "star" => Some(corners(10, &|i| if i % 2 == 0 { radius } else { 0.45 * radius }, up)),
        _ => None,
    }
}

/// Whether a point is in a polygon (by how many edges are to its right), or in the circle where there is none.
fn is_inside((x, y): (f32, f32), radius: f32, outline: Option<&[(f32, f32)]>) -> bool {
    if x.abs() > radius || y.abs() > radius {
        return false;
    }
    let Some(outline) = outline else { return x * x + y * y <= radius * radius };
    let edges = outline.iter().zip(outline.iter().cycle().skip(1));
    let crossed = |((ax, ay), (bx, by)): &(&(f32, f32), &(f32, f32))| {
        (*ay > y) != (*by > y) && x < (bx - ax) * (y - ay) / (by - ay) + ax
    };
    edges.filter(crossed).count() % 2 == 1
}
