//! What was timed as tables in Markdown, as READMEs have them: of models in seconds, of single operations in milliseconds.

use super::{Peer, Row};

const KERNELS: &str = "kernels/";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Models,
    Kernels,
}

/// Rows are printed as they come, beneath the head of their kind.
pub(super) struct Table<'a> {
    peers: &'a [Peer],
    last: Option<Kind>,
}

impl<'a> Table<'a> {
    pub(super) fn new(peers: &'a [Peer]) -> Self {
        Self { peers, last: None }
    }

    pub(super) fn print(&mut self, row: &Row) {
        let kind = if row.name.starts_with(KERNELS) { Kind::Kernels } else { Kind::Models };
        if self.last.replace(kind) != Some(kind) {
            let head = self.head(kind);
            println!("\n{}\n|{}", line(&head), "---|".repeat(head.len()));
        }
        let cells = match kind {
            Kind::Models => self.model(row),
            Kind::Kernels => kernel(row),
        };
        println!("{}", line(&cells));
    }

    fn head(&self, kind: Kind) -> Vec<String> {
        let mut cells = match kind {
            Kind::Models => vec!["seconds", "dtype", "ours", "MB"],
            Kind::Kernels => vec!["milliseconds", "dtype", "ours", "PyTorch", "ratio", "TFLOP/s", "share"],
        };
        if kind == Kind::Models {
            cells.extend(self.peers.iter().flat_map(|peer| [peer.name, "MB"]));
            cells.push("ratio");
        }
        cells.into_iter().map(str::to_string).collect()
    }

    fn model(&self, row: &Row) -> Vec<String> {
        let seconds = |seconds| digits(seconds, 3);
        let mut cells = vec![row.name.clone(), row.dtype.to_string()];
        cells.extend([seconds(row.ours_s), row.peak_rss_mb.to_string()]);
        for peer in self.peers {
            let median = row.peers.get(peer.name).and_then(serde_json::Value::as_f64);
            let peak = row.peers_peak_rss_mb.get(peer.name).and_then(serde_json::Value::as_u64);
            cells.extend([or_dash(median.map(seconds)), or_dash(peak.map(|peak| peak.to_string()))]);
        }
        cells.push(rounded(row.ratio));
        cells
    }
}

fn kernel(row: &Row) -> Vec<String> {
    let milliseconds = |seconds: f64| digits(1e3 * seconds, 0);
    let name = row.name.trim_start_matches(KERNELS).to_string();
    let peer = row.peers.values().next().and_then(serde_json::Value::as_f64).map(milliseconds);
    let mut cells = vec![name, row.dtype.to_string(), milliseconds(row.ours_s), or_dash(peer)];
    cells.extend([row.ratio, row.tflops, row.share_of_peak].map(rounded));
    cells
}

fn line(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

fn rounded(number: Option<f64>) -> String {
    or_dash(number.map(|number| format!("{number:.2}")))
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_string())
}

/// At least three digits that count, and at least so many decimals.
fn digits(number: f64, least_decimals: usize) -> String {
    let decimals = (2.0 - number.abs().max(1e-9).log10().floor()).max(0.0) as usize;
    format!("{number:.*}", decimals.max(least_decimals))
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn three_digits_count() {
        let seconds = [4.412, 20.8, 0.112_3, 0.090_21, 0.000_123_4].map(|number| digits(number, 3));
        assert_eq!(seconds, ["4.412", "20.800", "0.112", "0.0902", "0.000123"]);
        assert_eq!([1934.2, 72.04, 0.2721].map(|number| digits(number, 0)), ["1934", "72.0", "0.272"]);
    }
}
