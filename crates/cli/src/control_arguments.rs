//! What `diffuse generate` may be told of ControlNets.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use clap::Args;

use crate::output::utf8_name;

#[derive(Debug, Args)]
#[command(next_help_heading = "Steer by pictures")]
pub(crate) struct ControlArguments {
    /// A ControlNet (a folder, a single-file checkpoint or the id of one on the hub), the picture that it follows, and how strongly where
    /// that is not 1; may be repeated. Without --width, --height and --init-image the result has the first picture's size
    #[arg(long = "control", value_name = "MODEL:IMAGE[:SCALE]")]
    pub(crate) controls: Vec<OsString>,
    /// After which part of the steps a ControlNet begins, 0 to 1: once for all, or once for each --control in turn [default: 0]
    #[arg(long = "control-start", value_name = "X", requires = "controls", allow_hyphen_values = true)]
    pub(crate) starts: Vec<f64>,
    /// After which part of the steps it ends [default: 1]
    #[arg(long = "control-end", value_name = "X", requires = "controls", allow_hyphen_values = true)]
    pub(crate) ends: Vec<f64>,
    /// The pictures of --control say more of what is painted than the prompt; a guidance scale of 3 to 5 goes well with it
    #[arg(long, requires = "controls")]
    pub(crate) guess_mode: bool,
    /// Take the edges of a control picture, found where its brightness changes by HIGH (up to about 1000) and followed down to LOW, such
    /// as 50,100; `none` takes the picture as it is. Once for all, or once for each --control in turn
    #[arg(long, value_name = "LOW,HIGH", requires = "controls", allow_hyphen_values = true)]
    pub(crate) canny: Vec<Edges>,
}

/// What is made of a control picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Edges {
    None,
    Canny { low: f32, high: f32 },
}

impl FromStr for Edges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        match text.split_once(',').map(|(low, high)| (low.trim().parse::<f32>(), high.trim().parse::<f32>()))
        {
            Some((Ok(low), Ok(high))) if low > 0.0 && low <= high && high.is_finite() => {
                Ok(Self::Canny { low, high })
            }
            _ => Err("expected `none` or LOW,HIGH with 0 < LOW <= HIGH, such as 50,100".into()),
        }
    }
}

/// One `--control` with what the other flags say of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ControlArgument {
    /// As it was typed: a path or an id.
    pub(crate) model: String,
    pub(crate) picture: PathBuf,
    pub(crate) scale: f64,
    pub(crate) start: f64,
    pub(crate) end: f64,
    pub(crate) edges: Edges,
}

impl ControlArguments {
    /// All of them; what no model could do anything with is an error.
    pub(crate) fn read(&self) -> Result<Vec<ControlArgument>> {
        let count = self.controls.len();
        let starts = one_each("--control-start", &self.starts, 0.0, count)?;
        let ends = one_each("--control-end", &self.ends, 1.0, count)?;
        let edges = one_each("--canny", &self.canny, Edges::None, count)?;
        let read = |(index, value): (usize, &OsString)| -> Result<ControlArgument> {
            let (model, picture, scale) = split(value)?;
            let (start, end) = (starts[index], ends[index]);
            ensure!(
                (0.0..1.0).contains(&start),
                "--control-start is {start}, expected 0 or more and less than 1"
            );
            ensure!(
                end > start && end <= 1.0,
                "--control-end is {end}, expected more than --control-start, which is {start}, up to 1"
            );
            Ok(ControlArgument { model, picture, scale, start, end, edges: edges[index] })
        };
        self.controls.iter().enumerate().map(read).collect()
    }

    /// Whether a ControlNet is a checkpoint in one file.
    pub(crate) fn has_single_file(&self) -> bool {
        let is_file = |value: &OsString| split(value).is_ok_and(|(model, ..)| Path::new(&model).is_file());
        self.controls.iter().any(is_file)
    }
}

/// `values`, or one of them for all.
fn one_each<T: Copy>(flag: &str, values: &[T], usual: T, count: usize) -> Result<Vec<T>> {
    match values {
        [] => Ok(vec![usual; count]),
        [one] => Ok(vec![*one; count]),
        several if several.len() == count => Ok(several.to_vec()),
        several => {
            bail!("{flag} is given {} times, expected once, or {count} times, as --control is", several.len())
        }
    }
}

/// `MODEL:IMAGE[:SCALE]`, where paths may have colons: what is a file on disk decides.
fn split(value: &OsStr) -> Result<(String, PathBuf, f64)> {
    let text = utf8_name("--control", Path::new(value))?;
    let scaled = text.rsplit_once(':').and_then(|(rest, scale)| Some((rest, scale.parse::<f64>().ok()?)));
    let scaled = scaled.filter(|(_, scale)| scale.is_finite());
    for (rest, scale) in [Some((text, 1.0)), scaled].into_iter().flatten() {
        let places = || rest.match_indices(':').map(|(colon, _)| (&rest[..colon], &rest[colon + 1..]));
        let is_picture = |(model, picture): &(&str, &str)| !model.is_empty() && Path::new(picture).is_file();
        let mut pairs = places().filter(is_picture);
        let with_model = pairs.clone().find(|(model, _)| Path::new(model).exists());
        if let Some((model, picture)) = with_model.or_else(|| pairs.next()) {
            return Ok((model.to_string(), PathBuf::from(picture), scale));
        }
    }
    let unscaled = scaled.map_or(text, |(rest, _)| rest);
    match unscaled.rsplit_once(':') {
        Some((model, scale))
            if model.rsplit_once(':').is_some_and(|(_, picture)| Path::new(picture).is_file()) =>
        {
            bail!(
                "--control {text}: the scale {scale:?} is no number; expected MODEL:IMAGE or MODEL:IMAGE:SCALE"
            )
        }
        Some((model, picture)) if !model.is_empty() && !picture.is_empty() => {
            bail!(
                "--control {text}: there is no picture {picture}; expected MODEL:IMAGE or MODEL:IMAGE:SCALE"
            )
        }
        _ => bail!("--control {text}: the picture is missing; expected MODEL:IMAGE or MODEL:IMAGE:SCALE"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_in_paths_are_no_trouble() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, b"").unwrap();
            path.display().to_string()
        };
        let (plain, colon, number) = (make("a.png"), make("b:c.png"), make("d:2"));
        let net = make("net:1.safetensors");
        let parse = |text: &str| {
            let (model, picture, scale) = split(OsStr::new(text)).map_err(|error| error.to_string())?;
            Ok::<_, String>((model, picture.display().to_string(), scale))
        };
        for model in ["owner/name", "owner/name@v1", &net, "C:\\net"] {
            for picture in [&plain, &colon, &number] {
                let expected = |scale| Ok((model.to_string(), picture.clone(), scale));
                assert_eq!(parse(&format!("{model}:{picture}")), expected(1.0));
                assert_eq!(parse(&format!("{model}:{picture}:0.5")), expected(0.5));
                assert_eq!(parse(&format!("{model}:{picture}:-1")), expected(-1.0));
            }
        }
        let refused = |text: &str, expected: &str| {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        };
        refused("net", "the picture is missing");
        refused("net:0.5", "the picture is missing");
        refused(&format!(":{plain}"), "the picture is missing");
        refused("", "the picture is missing");
        refused("net:missing.png", "no picture missing.png");
        refused("net:missing.png:0.5", "no picture missing.png");
        refused(&format!("net:{plain}:strong"), "the scale \"strong\" is no number");
        refused(&format!("net:{plain}:inf"), "the scale \"inf\" is no number");
    }

    #[test]
    fn thresholds_are_two_numbers() {
        assert_eq!("none".parse(), Ok(Edges::None));
        assert_eq!("50, 100".parse(), Ok(Edges::Canny { low: 50.0, high: 100.0 }));
        for wrong in ["", "50", "100,50", "0,5", "-1,5", "nan,5", "5,inf", "a,b", "1,2,3"] {
            assert!(wrong.parse::<Edges>().is_err(), "{wrong}");
        }
    }
}
