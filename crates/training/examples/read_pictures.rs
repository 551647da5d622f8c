//! Reads a folder of pictures as a training run does and says how fast it goes:
//! `cargo run --release -p candle-diffusers-training --example read_pictures -- FOLDER [MILLISECONDS_OF_A_STEP]`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_diffusers_training::dataset::{
    BatchLoader, BatchOptions, Captions, Dataset, DatasetOptions, Position,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("give a folder of pictures")?;
    let step = Duration::from_millis(arguments.next().map_or(Ok(1000), |number| number.parse())?);
    let options = DatasetOptions { captions: Captions::None, skip_broken: true, ..Default::default() };
    let dataset = Arc::new(Dataset::open(&folder, options)?);
    dataset.warnings().iter().for_each(|warning| println!("{warning}"));
    let batch_options = BatchOptions::default();
    let batches = dataset.batches_per_epoch(&batch_options).min(20);

    let start = Instant::now();
    for batch in 0..batches {
        dataset.batch(Position { epoch: 0, batch: batch as u64 }, &batch_options)?.pixel_values()?;
    }
    let each = start.elapsed().as_secs_f64() * 1e3 / batches as f64;
    println!("{} pictures, {each:.1} ms to read and cut one to 512x512", dataset.len());

    let mut loader = BatchLoader::new(dataset, batch_options, Position::default(), 2)?;
    for _ in 0..batches {
        loader.next_batch()?.pixel_values()?;
        std::thread::sleep(step);
    }
    println!("{:.2} % of the time waited with steps of {step:?}", 100.0 * loader.waiting().share());
    Ok(())
}
