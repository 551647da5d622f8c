//! LoRAs that are computed: several merged into one, one brought to another rank, one found between two models.

mod computed;
mod delta;
mod extract;
mod merge;
mod resize;
mod truncate;

pub use computed::ComputedLora;
pub use extract::{ExtractOptions, extract_lora};
pub use merge::{WeightedLora, merge_loras};
pub use resize::resize_lora;
