//! Which part of a layer a tensor is, by how its name ends.

/// A part of an adapted layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Part {
    Down,
    Up,
    Mid,
    Alpha,
    DoraScale,
    /// PEFT's name for it; a convolution's has the output channels second.
    DoraMagnitude,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    HadaT1,
    HadaT2,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    Diff,
    DiffBias,
}

use Part::*;

/// How names end, the commonest spelling of a part first. What stands before is the layer's name.
const ENDINGS: &[(&str, Part)] = &[
    (".lora_down.weight", Down),
    (".lora_up.weight", Up),
    (".lora_mid.weight", Mid),
    (".alpha", Alpha),
    (".dora_scale", DoraScale),
    (".lora_A.weight", Down),
    (".lora_B.weight", Up),
    (".lora_magnitude_vector", DoraMagnitude),
    (".lora_magnitude_vector.weight", DoraMagnitude),
    // diffusers before it used PEFT: attention processors, and layers of its own class.
    ("_lora.down.weight", Down),
    ("_lora.up.weight", Up),
    (".lora_linear_layer.down.weight", Down),
    (".lora_linear_layer.up.weight", Up),
    (".lora.down.weight", Down),
    (".lora.up.weight", Up),
    (".hada_w1_a", HadaW1A),
    (".hada_w1_b", HadaW1B),
    (".hada_w2_a", HadaW2A),
    (".hada_w2_b", HadaW2B),
    (".hada_t1", HadaT1),
    (".hada_t2", HadaT2),
    (".lokr_w1", LokrW1),
    (".lokr_w1_a", LokrW1A),
    (".lokr_w1_b", LokrW1B),
    (".lokr_w2", LokrW2),
    (".lokr_w2_a", LokrW2A),
    (".lokr_w2_b", LokrW2B),
    (".lokr_t2", LokrT2),
    (".diff", Diff),
    (".diff_b", DiffBias),
    // LyCORIS' change of a normalization.
    (".w_norm", Diff),
    (".b_norm", DiffBias),
];

/// PEFT's names while an adapter is in a model have the adapter's own name behind these.
const BEFORE_ADAPTER: &[(&str, Part)] =
    &[(".lora_A.", Down), (".lora_B.", Up), (".lora_magnitude_vector.", DoraMagnitude)];

impl Part {
    /// The part that a tensor's name ends with, and the name of its layer.
    pub(super) fn split(name: &str) -> Option<(&str, Self)> {
        let plain = ENDINGS.iter().find_map(|(ending, part)| Some((name.strip_suffix(ending)?, *part)));
        plain.or_else(|| split_adapter(name)).filter(|(layer, _)| !layer.is_empty())
    }

    /// Whether only adapters have such tensors.
    pub(super) fn is_distinctive(self) -> bool {
        !matches!(self, Alpha | Diff | DiffBias)
    }

    /// How the tensor `found` of the part `self` would be called were it the part `wanted` of the same layer.
    pub(super) fn sibling(self, found: &str, wanted: Self) -> String {
        const PAIRS: [(&str, &str); 3] =
            [("lora_down.", "lora_up."), ("lora_A.", "lora_B."), (".down.", ".up.")];
        let swapped = PAIRS.iter().find_map(|(down, up)| {
            let (from, to) = if self == Down { (down, up) } else { (up, down) };
            let at = found.rfind(from)?;
            Some(format!("{}{to}{}", &found[..at], &found[at + from.len()..]))
        });
        match (self, wanted, swapped) {
            (Down, Up, Some(name)) | (Up, Down, Some(name)) => name,
            _ => {
                let layer = Self::split(found).map_or(found, |(layer, _)| layer);
                let ending =
                    ENDINGS.iter().find(|(_, part)| *part == wanted).map_or("", |(ending, _)| ending);
                format!("{layer}{ending}")
            }
        }
    }
}

fn split_adapter(name: &str) -> Option<(&str, Part)> {
    BEFORE_ADAPTER.iter().find_map(|(mark, part)| {
        let at = name.rfind(mark)?;
        let rest = &name[at + mark.len()..];
        let adapter = rest.strip_suffix(".weight").or((*part == DoraMagnitude).then_some(rest))?;
        (!adapter.is_empty() && !adapter.contains('.')).then_some((&name[..at], *part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_whatever_their_spelling() {
        for (name, layer, part) in [
            ("lora_unet_mid_block.lora_down.weight", "lora_unet_mid_block", Down),
            ("unet.a.to_q.lora_A.default_0.weight", "unet.a.to_q", Down),
            ("unet.a.attn1.processor.to_q_lora.up.weight", "unet.a.attn1.processor.to_q", Up),
            ("a.q_proj.lora_linear_layer.down.weight", "a.q_proj", Down),
            ("a.lora_magnitude_vector.default.weight", "a", DoraMagnitude),
            ("a.lora_magnitude_vector.default", "a", DoraMagnitude),
            ("a.lokr_w1_a", "a", LokrW1A),
        ] {
            assert_eq!(Part::split(name), Some((layer, part)), "{name}");
        }
        for name in ["", ".alpha", "a.weight", "lora_A.weight", "a.lora_A.b.c.weight", "a.lora_B.bias"] {
            assert_eq!(Part::split(name), None, "{name}");
        }
    }

    #[test]
    fn counterparts_are_named_in_the_same_spelling() {
        for (found, part, wanted, name) in [
            ("x.lora_down.weight", Down, Up, "x.lora_up.weight"),
            ("x.lora_B.default.weight", Up, Down, "x.lora_A.default.weight"),
            ("x.to_q_lora.down.weight", Down, Up, "x.to_q_lora.up.weight"),
            ("x.hada_w1_a", HadaW1A, HadaW2B, "x.hada_w2_b"),
        ] {
            assert_eq!(part.sibling(found, wanted), name);
        }
    }
}
