//! Folders of pictures: what is found, how it is put in batches, and that a run goes on from any place.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_diffusers_training::dataset::{
    Area, Batch, BatchLoader, BatchOptions, BucketOptions, Buckets, CaptionFiles, Captions, Dataset,
    DatasetOptions, Fit, Flip, Listing, Position, TransformOptions,
};
use image::{DynamicImage, ImageFormat, RgbImage};
use tempfile::TempDir;

fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([seed * 40, x * 5, y * 5].map(|value| value as u8)))
}

fn folder(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (seed, name) in names.iter().enumerate() {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        picture(40, 32, seed as u32).save(path).unwrap();
    }
    folder
}

fn options(captions: Captions) -> DatasetOptions {
    DatasetOptions { captions, resolution: 16, ..Default::default() }
}

fn prompt() -> Captions {
    Captions::Prompt("a cat".to_string())
}

fn column(column: &str) -> Captions {
    Captions::Folder { column: column.to_string() }
}

fn names(dataset: &Dataset) -> Vec<String> {
    dataset.files().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn captions_come_from_metadata_text_files_or_a_prompt() {
    let folder = folder(&["b.png", "a.png", "more/c.jpg", "d.webp"]);
    fs::write(folder.path().join(".hidden.png"), "no picture").unwrap();
    let dataset = Dataset::open(folder.path(), options(prompt())).unwrap();
    assert_eq!(names(&dataset), ["a.png", "b.png", "d.webp", "c.jpg"]);
    assert_eq!(dataset.captions(3), ["a cat"]);
    assert!(Dataset::open(folder.path(), options(Captions::None)).unwrap().captions(0).is_empty());

    let templates = Captions::OneOf(vec!["a photo of a cat".to_string(), "a drawing of a cat".to_string()]);
    let dataset = Dataset::open(folder.path(), options(templates)).unwrap();
    let captions: HashSet<String> =
        (0..20).map(|epoch| batch(&dataset, epoch).samples[0].caption.clone()).collect();
    assert_eq!(captions.len(), 2);

    for name in ["a", "b", "more/c", "d"] {
        fs::write(folder.path().join(name).with_extension("txt"), format!(" text of {name}\n")).unwrap();
    }
    let dataset = Dataset::open(folder.path(), options(Captions::default())).unwrap();
    assert_eq!(dataset.captions(1), ["text of b"]);

    let csv = folder.path().join("metadata.csv");
    fs::write(&csv, "file_name,text,other\nmore/c.jpg,\"one, two\",1\nb.png,three,2\n").unwrap();
    let dataset = Dataset::open(folder.path(), options(Captions::default())).unwrap();
    assert_eq!(
        (names(&dataset), dataset.captions(0)),
        (vec!["c.jpg".into(), "b.png".into()], &["one, two".into()][..])
    );
    assert_eq!(dataset.unlisted(), 2);
    assert_eq!(Dataset::open(folder.path(), options(column("other"))).unwrap().captions(1), ["2"]);

    // A file in a subfolder names pictures there.
    fs::write(folder.path().join("more/metadata.csv"), "file_name,text\nc.jpg,four\n").unwrap();
    let dataset = Dataset::open(folder.path(), options(Captions::default())).unwrap();
    assert_eq!((dataset.len(), dataset.captions(2)), (3, &["four".into()][..]));
    fs::remove_file(folder.path().join("more/metadata.csv")).unwrap();

    fs::remove_file(csv).unwrap();
    let lines =
        "{\"file_name\": \"a.png\", \"text\": [\"x\", \"y\"], \"mask\": \"d.webp\", \"boxes\": [[1, 2]]}\n\n";
    fs::write(folder.path().join("metadata.jsonl"), lines).unwrap();
    let with_mask =
        DatasetOptions { picture_columns: vec!["mask".to_string()], ..options(Captions::default()) };
    let dataset = Dataset::open(folder.path(), with_mask).unwrap();
    // The mask is named too.
    assert_eq!(dataset.unlisted(), 2);
    assert_eq!(dataset.captions(0), ["x", "y"]);
    let captions: HashSet<String> =
        (0..20).map(|epoch| batch(&dataset, epoch).samples[0].caption.clone()).collect();
    assert_eq!(captions.len(), 2, "each caption is chosen now and then");
    let batch = batch(&dataset, 0);
    assert_eq!(batch.samples[0].others.len(), 1);
    assert_eq!(batch.other_pixel_values(0).unwrap().dims(), [1, 3, 16, 16]);
    assert!(batch.other_pixel_values(1).is_err());

    // As Hugging Face's datasets name pictures.
    let lines = "{\"image_file_name\": \"a.png\", \"text\": \"x\", \"mask_file_name\": \"d.webp\"}\n";
    fs::write(folder.path().join("metadata.jsonl"), lines).unwrap();
    let named = |picture: &str, other: &str| DatasetOptions {
        picture_column: picture.to_string(),
        picture_columns: vec![other.to_string()],
        ..options(Captions::default())
    };
    let dataset = Dataset::open(folder.path(), named("image", "mask")).unwrap();
    assert_eq!(names(&dataset), ["a.png"]);
    let lines = "{\"file_name\": \"a.png\", \"text\": \"x\", \"edited\": \"d.webp\"}\n";
    fs::write(folder.path().join("metadata.jsonl"), lines).unwrap();
    assert_eq!(names(&Dataset::open(folder.path(), named("edited", "image")).unwrap()), ["d.webp"]);
    // Also where they do not say what pictures show.
    let edited = DatasetOptions { picture_column: "edited".to_string(), ..options(prompt()) };
    let dataset = Dataset::open(folder.path(), edited).unwrap();
    assert_eq!((names(&dataset), dataset.captions(0)), (vec!["d.webp".into()], &["a cat".into()][..]));
    let error = Dataset::open(folder.path(), named("image", "edges")).unwrap_err().to_string();
    assert!(
        error.ends_with("line 1: has no column edges; the columns are edited, file_name, text"),
        "{error}"
    );
}

#[test]
fn folders_that_are_left_out_are_not_looked_into() {
    let folder = folder(&["a.png", "more/b.png", "out/validation/c.png", "class/d.png"]);
    fs::write(folder.path().join("class/d.txt"), "a thing").unwrap();
    let alone = Dataset::open(folder.path().join("more"), options(prompt())).unwrap();
    // By another name than it is found under; one that is not there; the folder itself.
    let left_out = ["more/../out", "class", "none", ""].map(|name| folder.path().join(name)).to_vec();
    let listing = Listing::of(folder.path(), &left_out).unwrap();
    assert_eq!((listing.pictures(), listing.caption_files("text").unwrap()), (2, None));
    assert_eq!(Listing::of(folder.path(), &[]).unwrap().pictures(), 4);
    let leaving_out = DatasetOptions { left_out, ..options(prompt()) };
    let mut dataset = Dataset::open(folder.path(), leaving_out.clone()).unwrap();
    assert_eq!(names(&dataset), ["a.png", "b.png"]);
    let class = Dataset::open(folder.path().join("class"), leaving_out).unwrap();
    assert_eq!(names(&class), ["d.png"]);
    let digest = dataset.pictures_digest();
    dataset.append(alone).unwrap();
    assert_eq!(names(&dataset), ["a.png", "b.png", "b.png"]);

    for name in ["out", "class"] {
        fs::remove_dir_all(folder.path().join(name)).unwrap();
    }
    let without = Dataset::open(folder.path(), options(prompt())).unwrap();
    assert_eq!(without.pictures_digest(), digest);
}

#[cfg(unix)]
#[test]
fn links_make_no_picture_come_twice() {
    use std::os::unix::fs::symlink;
    let folder = folder(&["a.png", "more/b.png"]);
    let before = Dataset::open(folder.path(), options(prompt())).unwrap();
    symlink(".", folder.path().join("self")).unwrap();
    symlink("..", folder.path().join("more/up")).unwrap();
    symlink("more", folder.path().join("before")).unwrap();
    let dataset = Dataset::open(folder.path(), options(prompt())).unwrap();
    assert_eq!(dataset.pictures_digest(), before.pictures_digest());
    // What is elsewhere is found by its link.
    let elsewhere = self::folder(&["c.png"]);
    symlink(elsewhere.path(), folder.path().join("link")).unwrap();
    let dataset = Dataset::open(folder.path(), options(prompt())).unwrap();
    assert_eq!(names(&dataset), ["a.png", "c.png", "b.png"]);
}

#[test]
fn words_of_captions_are_replaced() {
    let folder = folder(&["a.png"]);
    let line = "{\"file_name\": \"a.png\", \"text\": [\"a DUMMY, DUMMY\", \"a cat\"]}\n";
    fs::write(folder.path().join("metadata.jsonl"), line).unwrap();
    let mut dataset = Dataset::open(folder.path(), options(Captions::default())).unwrap();
    let before = dataset.captions_digest();
    dataset.replace_in_captions("DUMMY", "<s1><s2>");
    assert_eq!(dataset.captions(0), ["a <s1><s2>, <s1><s2>", "a cat"]);
    assert_ne!(dataset.captions_digest(), before);
}

#[test]
fn pictures_are_known_by_their_names_wherever_the_folder_is() {
    let folder = folder(&["a.png", "more/b.png"]);
    let digest = |path: &Path| Dataset::open(path, options(prompt())).unwrap().pictures_digest();
    let before = digest(folder.path());
    assert_eq!(digest(&folder.path().join("more/..")), before);
    let moved = folder.path().with_extension("moved");
    fs::rename(folder.path(), &moved).unwrap();
    assert_eq!(digest(&moved), before);
    fs::rename(moved.join("more/b.png"), moved.join("more/c.png")).unwrap();
    assert_ne!(digest(&moved), before);
    fs::rename(&moved, folder.path()).unwrap();
}

#[test]
fn captions_are_left_out_as_often_as_asked() {
    let folder = folder(&["a.png"]);
    for (caption_dropout, expected) in [(0.0, 0..=0), (0.25, 30..=70), (1.0, 200..=200)] {
        let dataset =
            Dataset::open(folder.path(), DatasetOptions { caption_dropout, ..options(prompt()) }).unwrap();
        let left_out = (0..200).filter(|&epoch| batch(&dataset, epoch).captions() == [""]).count();
        assert!(expected.contains(&left_out), "{caption_dropout}: {left_out} of 200");
    }
    assert!(
        Dataset::open(folder.path(), DatasetOptions { caption_dropout: f64::NAN, ..options(prompt()) })
            .is_err()
    );
}

fn batch(dataset: &Dataset, epoch: u64) -> Batch {
    dataset.batch(Position { epoch, batch: 0 }, &BatchOptions::default()).unwrap()
}

#[test]
fn pictures_of_every_kind_become_red_green_and_blue() {
    let folder = tempfile::tempdir().unwrap();
    let whole = DynamicImage::from(picture(40, 32, 3));
    whole.to_luma8().save(folder.path().join("grey.png")).unwrap();
    whole.to_rgba8().save(folder.path().join("transparent.webp")).unwrap();
    whole.to_rgb16().save(folder.path().join("deep.png")).unwrap();
    // A quarter turn to the right by EXIF.
    let mut jpeg = std::io::Cursor::new(Vec::new());
    whole.write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
    let exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let jpeg = jpeg.into_inner();
    fs::write(folder.path().join("turned.jpg"), [&jpeg[..2], exif, &jpeg[2..]].concat()).unwrap();

    let dataset = Dataset::open(folder.path(), options(prompt())).unwrap();
    assert_eq!(names(&dataset), ["deep.png", "grey.png", "transparent.webp", "turned.jpg"]);
    for (index, original_size) in [(32, 40), (32, 40), (32, 40), (40, 32)].into_iter().enumerate() {
        let sample = dataset.sample(index, &mut candle_diffusers_schedulers::TorchGenerator::new(0)).unwrap();
        assert_eq!((sample.original_size, sample.target_size()), (original_size, (16, 16)));
    }
    assert!(dataset.warnings().is_empty());
}

#[test]
fn every_picture_comes_as_often_as_it_should() {
    let names: Vec<String> = (0..7).map(|index| format!("{index}.png")).collect();
    let folder = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let dataset = Dataset::open(folder.path(), DatasetOptions { repeats: 3, ..options(prompt()) }).unwrap();
    let mut orders = HashSet::new();
    for fill in [false, true] {
        let batch_options = BatchOptions { batch_size: 4, fill, ..Default::default() };
        assert_eq!(dataset.batches_per_epoch(&batch_options), 6);
        for epoch in 0..3 {
            let mut position = Position { epoch, batch: 0 };
            let mut order = Vec::new();
            while position.epoch == epoch {
                let batch = dataset.batch(position, &batch_options).unwrap();
                assert!(batch.samples.len() == 4 || !fill && position.batch == 5);
                order.extend(batch.samples.iter().map(|sample| sample.index));
                position = batch.next;
            }
            let counts: Vec<usize> =
                (0..7).map(|index| order.iter().filter(|&&i| i == index).count()).collect();
            assert!(counts.iter().all(|&count| count >= 3) && order.len() == if fill { 24 } else { 21 });
            orders.insert(order[..21].to_vec());
        }
    }
    assert_eq!(orders.len(), 3, "epochs have orders of their own, and filling up changes none");
}

#[test]
fn a_run_goes_on_from_any_place_and_processes_share_batches() {
    for fit in [Fit::Cover, Fit::RandomSize] {
        goes_on_and_is_shared(fit);
    }
}

fn goes_on_and_is_shared(fit: Fit) {
    let folder = folder(&["a.png", "b.png", "c.png", "d.png", "e.png"]);
    let transform = TransformOptions { flip: Flip::AfterCrop, fit, ..Default::default() };
    let dataset =
        Dataset::open(folder.path(), DatasetOptions { transform, seed: 5, ..options(prompt()) }).unwrap();
    let dataset = Arc::new(dataset);
    let whole = BatchOptions { batch_size: 2, fill: true, ..Default::default() };
    let batches: Vec<Batch> = {
        let mut loader = BatchLoader::new(dataset.clone(), whole, Position::default(), 2).unwrap();
        (0..8).map(|_| loader.next_batch().unwrap()).collect()
    };
    assert_eq!(batches[7].next, Position { epoch: 2, batch: 2 });
    for start in 0..7 {
        let mut loader = BatchLoader::new(dataset.clone(), whole, batches[start].next, 1).unwrap();
        assert_eq!(loader.next_batch().unwrap(), batches[start + 1], "after batch {start}");
        let waiting = loader.waiting();
        assert!((0.0..=1.0).contains(&waiting.share()) && waiting.waited <= waiting.total);
    }
    let processes = [0, 1].map(|process| BatchOptions { batch_size: 1, fill: false, process, processes: 2 });
    let mut position = Position::default();
    for batch in &batches {
        let shares = processes.map(|options| dataset.batch(position, &options).unwrap());
        let samples: Vec<_> = shares.iter().flat_map(|share| share.samples.clone()).collect();
        assert_eq!(samples, batch.samples);
        assert!(shares.iter().all(|share| share.next == batch.next));
        position = batch.next;
    }
    let other_seed =
        Dataset::open(folder.path(), DatasetOptions { transform, seed: 6, ..options(prompt()) }).unwrap();
    assert_ne!(other_seed.batch(Position::default(), &whole).unwrap(), batches[0]);
}

#[test]
fn whole_pictures_come_at_any_size_with_words_for_it() {
    let folder = folder(&["a.png"]);
    let open = |fit| {
        let transform = TransformOptions { fit, ..Default::default() };
        Dataset::open(folder.path(), DatasetOptions { transform, ..options(prompt()) }).unwrap()
    };
    let dataset = open(Fit::RandomSize);
    let (mut captions, mut larger) = (HashSet::new(), 0);
    for epoch in 0..300 {
        let batch = batch(&dataset, epoch);
        let sample = &batch.samples[0];
        let words = sample.caption.strip_suffix("a cat").unwrap();
        captions.insert(words.to_string());
        let Some(area) = sample.area else {
            larger += 1;
            assert!(["zoomed in ", "close up "].contains(&words), "{words}");
            continue;
        };
        assert!(area.width == area.height && (5..=16).contains(&area.width), "{area:?}");
        // Small is below 0.6 of the resolution.
        assert_eq!(["a far away ", "very small "].contains(&words), area.width < 10, "{area:?}");
        assert_eq!(words.is_empty(), area.width >= 10, "{area:?}");
        let pixels = batch.pixel_values().unwrap().squeeze(0).unwrap().to_vec3::<f32>().unwrap();
        for (x, y) in (0..16).flat_map(|x| (0..16).map(move |y| (x, y))) {
            let is_shown = (area.left..area.left + area.width).contains(&x)
                && (area.top..area.top + area.height).contains(&y);
            // No value of a picture is exactly the middle.
            assert_eq!(pixels[0][y as usize][x as usize] != 0.0, is_shown, "{x} {y} of {area:?}");
        }
    }
    assert!(captions.len() == 5 && (70..=135).contains(&larger), "{captions:?}, {larger} of 300 are larger");

    let whole = open(Fit::Whole);
    assert!(whole.is_fixed() && !dataset.is_fixed());
    let sample = batch(&whole, 0).samples.remove(0);
    let all = Area { left: 0, top: 0, width: 16, height: 16 };
    assert_eq!((sample.area, sample.caption.as_str()), (Some(all), "a cat"));
}

#[test]
fn pictures_can_be_drawn_once_for_all() {
    let folder = folder(&["a.png", "b.png"]);
    let open = |seed: u64, drawn_once: bool| {
        let flip = Flip::AfterCrop;
        let transform =
            TransformOptions { flip, fit: Fit::RandomSize, color_jitter: true, ..Default::default() };
        let captions = Captions::OneOf((0..9).map(|number| format!("caption {number}")).collect());
        let options = DatasetOptions { transform, seed, drawn_once, ..options(captions) };
        Dataset::open(folder.path(), options).unwrap()
    };
    let dataset = open(1, true);
    assert!(dataset.is_fixed() && !open(1, false).is_fixed());
    for epoch in 0..10 {
        let sample = batch(&dataset, epoch).samples.remove(0);
        assert_eq!(sample, dataset.fixed_sample(sample.index).unwrap());
    }
    assert_ne!(dataset.fixed_sample(0).unwrap(), open(2, true).fixed_sample(0).unwrap());
}

#[test]
fn batches_of_buckets_have_one_size_each() {
    let folder = tempfile::tempdir().unwrap();
    for (index, (width, height)) in
        [(90, 30), (30, 90), (64, 64), (80, 31), (31, 80), (70, 69)].into_iter().enumerate()
    {
        picture(width, height, index as u32).save(folder.path().join(format!("{index}.png"))).unwrap();
    }
    let buckets = Some(Buckets::OfArea(BucketOptions { min_size: 16, max_size: 64, step: 8 }));
    let dataset = Dataset::open(
        folder.path(),
        DatasetOptions { buckets, captions: prompt(), resolution: 32, ..Default::default() },
    )
    .unwrap();
    let batch_options = BatchOptions { batch_size: 2, ..Default::default() };
    assert_eq!(dataset.batches_per_epoch(&batch_options), 3);
    let mut sizes = HashSet::new();
    for batch in 0..3 {
        let batch = dataset.batch(Position { epoch: 0, batch }, &batch_options).unwrap();
        let (_, _, height, width) = batch.pixel_values().unwrap().dims4().unwrap();
        assert!(height * width <= 32 * 32 && height % 8 == 0 && width % 8 == 0);
        sizes.insert((height, width));
    }
    assert_eq!(sizes, HashSet::from([(16, 48), (48, 16), (32, 32)]));
}

#[test]
fn pictures_of_a_class_come_in_the_sizes_of_what_they_are_joined_with() {
    let (things, classes) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (index, (width, height)) in [(90, 30), (30, 90), (64, 64), (80, 31)].into_iter().enumerate() {
        picture(width, height, index as u32).save(things.path().join(format!("{index}.png"))).unwrap();
    }
    for index in 0..3 {
        picture(32, 32, index).save(classes.path().join(format!("{index}.png"))).unwrap();
    }
    let open = |folder: &TempDir, buckets: Option<Buckets>| {
        let options = DatasetOptions { buckets, captions: prompt(), resolution: 32, ..Default::default() };
        Dataset::open(folder.path(), options).unwrap()
    };
    let options = BucketOptions { min_size: 16, max_size: 64, step: 8 };
    let things = Arc::new(open(&things, Some(Buckets::OfArea(options))));
    let mut classes = open(&classes, None);
    assert_eq!((classes.sizes(), classes.is_fixed()), (vec![[32, 32]], true));
    classes.cut_like(things.clone());
    assert_eq!((classes.sizes(), classes.is_fixed()), (things.sizes(), false));
    assert_eq!(things.sizes().len(), 3);

    // Three batches of things and two of the class make an epoch.
    let classes = Arc::new(classes);
    let whole = BatchOptions { batch_size: 2, fill: true, ..Default::default() };
    let read = |dataset: &Arc<Dataset>| -> Vec<Batch> {
        let mut loader = BatchLoader::new(dataset.clone(), whole, Position::default(), 2).unwrap();
        (0..9).map(|_| loader.next_batch().unwrap()).collect()
    };
    let (of_things, of_classes) = (read(&things), read(&classes));
    assert_eq!(of_classes[8].next, Position { epoch: 4, batch: 1 });
    for (thing, class) in of_things.iter().zip(&of_classes) {
        let size = |batch: &Batch| batch.pixel_values().unwrap().dims().to_vec();
        assert_eq!(size(thing), size(class));
    }
    // It goes on from any place, and processes share batches.
    for start in 0..8 {
        let mut loader = BatchLoader::new(classes.clone(), whole, of_classes[start].next, 1).unwrap();
        assert_eq!(loader.next_batch().unwrap(), of_classes[start + 1], "after batch {start}");
    }
    let processes = [0, 1].map(|process| BatchOptions { batch_size: 1, fill: true, process, processes: 2 });
    let mut position = Position::default();
    for batch in &of_classes {
        let shares = processes.map(|options| classes.batch(position, &options).unwrap());
        let samples: Vec<_> = shares.iter().flat_map(|share| share.samples.clone()).collect();
        assert_eq!(samples, batch.samples);
        position = batch.next;
    }
}

/// The message of a folder that cannot be opened, without the folder's own path.
fn refused(folder: &Path, options: DatasetOptions) -> String {
    let message = Dataset::open(folder, options).unwrap_err().to_string();
    message.replace(&folder.display().to_string(), "FOLDER")
}

#[test]
fn bad_folders_are_refused_with_what_is_wrong() {
    let empty = tempfile::tempdir().unwrap();
    let message = refused(empty.path(), options(prompt()));
    assert_eq!(message, "FOLDER: is empty; put PNG, JPEG or WebP pictures there");
    assert!(refused(&empty.path().join("none"), options(prompt())).starts_with("FOLDER: cannot be read:"));
    fs::write(empty.path().join("a.gif"), "GIF89a").unwrap();
    let message = refused(empty.path(), options(prompt()));
    assert_eq!(message, "FOLDER: has no PNG, JPEG or WebP picture; there are a.gif");
    fs::write(empty.path().join("b.png"), "text").unwrap();
    let message = refused(empty.path(), options(prompt()));
    let expected = "FOLDER: has no picture that can be read: FOLDER/b.png: is no PNG, JPEG or WebP picture that can be read:";
    assert!(message.starts_with(expected), "{message}");

    let folder = folder(&["a.png", "b.png"]);
    let message = refused(folder.path(), options(Captions::default()));
    let expected = "FOLDER: has no metadata.csv or metadata.jsonl, and no captions in text files for a.png, b.png; write them, \
                    as cat.txt for cat.png";
    assert_eq!(message, expected);
    fs::write(folder.path().join("licence.txt"), "free").unwrap();
    let captions = || Listing::of(folder.path(), &[]).unwrap().caption_files("text").unwrap();
    assert_eq!(captions(), None);
    fs::write(folder.path().join("a.txt"), "a cat").unwrap();
    assert_eq!(captions(), Some(CaptionFiles::Texts));
    let message = refused(folder.path(), options(Captions::default()));
    let expected = "no captions in text files for b.png; write them, or remove those of the others where one prompt is given for all";
    assert!(message.ends_with(expected), "{message}");
    let with_mask = DatasetOptions { picture_columns: vec!["mask".into()], ..options(prompt()) };
    let message = refused(folder.path(), with_mask.clone());
    assert_eq!(
        message,
        "FOLDER: has no metadata.csv or metadata.jsonl with mask; write one, with a row for each picture"
    );

    assert!(!Listing::of(folder.path(), &[]).unwrap().has_metadata().unwrap());
    let csv = folder.path().join("metadata.csv");
    fs::write(&csv, "file_name,text\na.png,one\nx.png,two\ny.png,three\n").unwrap();
    assert!(Listing::of(folder.path(), &[]).unwrap().has_metadata().unwrap());
    let message = refused(folder.path(), options(Captions::default()));
    assert_eq!(message, "FOLDER/metadata.csv: names pictures that are not there: x.png, y.png");
    let message = refused(folder.path(), options(column("caption")));
    assert_eq!(message, "FOLDER/metadata.csv line 2: has no column caption; the columns are file_name, text");
    assert!(
        refused(folder.path(), with_mask).ends_with("has no column mask; the columns are file_name, text")
    );
    let photo = DatasetOptions { picture_column: "photo".to_string(), ..options(prompt()) };
    assert!(refused(folder.path(), photo).ends_with("has no column photo; the columns are file_name, text"));
    fs::write(&csv, "file_name,text\n").unwrap();
    assert_eq!(refused(folder.path(), options(Captions::default())), "FOLDER/metadata.csv: names no picture");
    fs::write(&csv, "file_name,text\na.png\n").unwrap();
    assert!(refused(folder.path(), options(Captions::default())).contains("is no CSV file"));

    let jsonl = folder.path().join("metadata.jsonl");
    fs::write(&csv, "file_name,text\na.png,one\n").unwrap();
    fs::write(&jsonl, "{\"file_name\": \"a.png\", \"text\": \"one\"}\n").unwrap();
    let message = refused(folder.path(), options(Captions::default()));
    assert_eq!(message, "FOLDER: has both metadata.csv and metadata.jsonl; remove one of them");
    fs::remove_file(csv).unwrap();
    fs::write(&jsonl, "{\"file_name\": \"a.png\", \"text\": \"one\"}\n[1]\n").unwrap();
    let message = refused(folder.path(), options(Captions::default()));
    assert_eq!(message, "FOLDER/metadata.jsonl line 2: is no JSON object");
    fs::write(&jsonl, "{\"file_name\": \"a.png\", \"text\": 7}\n").unwrap();
    let message = refused(folder.path(), options(Captions::default()));
    assert_eq!(message, "FOLDER/metadata.jsonl line 1: text is 7; expected a text or a list of texts");
    fs::write(&jsonl, "{\"file_name\": \"a.png\"").unwrap();
    assert!(
        refused(folder.path(), options(Captions::default()))
            .starts_with("FOLDER/metadata.jsonl line 1: is no JSON")
    );
}

#[test]
fn settings_out_of_range_are_refused() {
    let folder = folder(&["a.png"]);
    let message = refused(folder.path(), DatasetOptions { resolution: 515, ..options(prompt()) });
    assert_eq!(message, "resolution is 515; expected a multiple of 8, such as 512");
    assert!(Dataset::open(folder.path(), DatasetOptions { resolution: 0, ..options(prompt()) }).is_err());
    assert!(Dataset::open(folder.path(), DatasetOptions { repeats: 0, ..options(prompt()) }).is_err());
    let dataset = Arc::new(Dataset::open(folder.path(), options(prompt())).unwrap());
    let default = BatchOptions::default();
    for wrong in [
        BatchOptions { batch_size: 0, ..default },
        BatchOptions { processes: 0, ..default },
        BatchOptions { process: 1, ..default },
    ] {
        assert!(dataset.batch(Position::default(), &wrong).is_err());
        assert!(BatchLoader::new(dataset.clone(), wrong, Position::default(), 1).is_err());
    }
    let beyond = Position { epoch: 0, batch: 1 };
    assert!(dataset.batch(beyond, &default).is_err());
    assert!(BatchLoader::new(dataset.clone(), default, beyond, 1).is_err());
    assert!(dataset.sample(1, &mut candle_diffusers_schedulers::TorchGenerator::new(0)).is_err());
}

#[test]
fn small_pictures_are_enlarged_with_a_warning() {
    let folder = folder(&["a.png"]);
    let dataset =
        Dataset::open(folder.path(), DatasetOptions { resolution: 64, ..options(prompt()) }).unwrap();
    let warnings: Vec<String> = dataset.warnings().iter().map(ToString::to_string).collect();
    let file = folder.path().join("a.png");
    assert_eq!(warnings, [format!("{} is 40x32 and enlarged to 64x64", file.display())]);
    assert_eq!(batch(&dataset, 0).pixel_values().unwrap().dims(), [1, 3, 64, 64]);
}

#[test]
fn broken_pictures_are_named_and_can_be_left_out() {
    let folder = folder(&["a.jpg", "b.jpg", "c.jpg", "d.png", "e.png"]);
    // Cut off in the middle: the header is good.
    for name in ["b.jpg", "d.png"] {
        let path = folder.path().join(name);
        picture(300, 200, 1).save(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - bytes.len() / 3]).unwrap();
    }
    let dataset = Dataset::open(folder.path(), options(prompt())).unwrap();
    let mut loader =
        BatchLoader::new(Arc::new(dataset), BatchOptions::default(), Position::default(), 1).unwrap();
    let message = (0..5).find_map(|_| loader.next_batch().err()).unwrap().to_string();
    assert!(
        message.contains("b.jpg: is a JPEG picture whose end")
            || message.contains("d.png: cannot be read: unexpected end"),
        "{message}"
    );
    assert!(loader.next_batch().is_err(), "a loader ends at its first error");

    // A header that is none: told at once.
    fs::write(folder.path().join("e.png"), "text").unwrap();
    let message = refused(folder.path(), options(prompt()));
    let expected = "FOLDER: has pictures that cannot be read (remove them, or leave them out by skip_broken): FOLDER/e.png: is no PNG";
    assert!(message.starts_with(expected), "{message}");

    let skipping = DatasetOptions { skip_broken: true, ..options(prompt()) };
    let dataset = Dataset::open(folder.path(), skipping).unwrap();
    assert_eq!((dataset.len(), dataset.warnings().len()), (4, 1));
    let mut warnings = HashSet::new();
    for place in 0..4 {
        let batch = dataset.batch(Position { epoch: 0, batch: place }, &BatchOptions::default()).unwrap();
        assert!(
            [0, 2].contains(&batch.samples[0].index),
            "another picture comes in the place of a broken one"
        );
        warnings.extend(batch.warnings.iter().map(ToString::to_string));
    }
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("b.jpg is left out: is a JPEG picture whose end is missing"))
    );
}
