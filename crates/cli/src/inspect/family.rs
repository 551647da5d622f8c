use serde_json::Value;

/// The family of models that a UNet's config belongs to, by its architecture: a tiny model of the same build counts as well.
pub(super) fn family(unet: &Value) -> &'static str {
    let is = |field: &str, value: &str| unet.get(field).and_then(Value::as_str) == Some(value);
    let number = |field: &str| unet.get(field).and_then(Value::as_u64);
    if is("_class_name", "UNet2DModel") {
        return "unconditional";
    }
    if is("addition_embed_type", "text_time") {
        // Six sizes and crops for the base; five, one of them a score, for the refiner, whose text is that of one encoder.
        let time_ids = number("projection_class_embeddings_input_dim")
            .zip(number("addition_time_embed_dim"))
            .and_then(|(input, width)| Some((input.checked_rem(width)?, input.checked_div(width)?)));
        let is_refiner = number("cross_attention_dim") == Some(1280) || time_ids == Some((0, 10));
        return if is_refiner { "sdxl-refiner" } else { "sdxl" };
    }
    if unet.get("use_linear_projection") == Some(&Value::Bool(true)) {
        return "sd2";
    }
    "sd1"
}

/// What a UNet paints from besides a text, by the channels that it sees.
pub(super) fn task(unet: &Value, latent_channels: u64) -> Option<&'static str> {
    if family(unet) == "unconditional" {
        return None;
    }
    match unet.get("in_channels").and_then(Value::as_u64)? {
        channels if channels == latent_channels => Some("text-to-image"),
        channels if channels == latent_channels.checked_mul(2)? => Some("instruct-pix2pix"),
        channels if channels == latent_channels.checked_mul(2)?.checked_add(1)? => Some("inpainting"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn families_are_told_apart_by_their_published_configs() {
        let sd1 = json!({"cross_attention_dim": 768, "in_channels": 4, "attention_head_dim": 8});
        let sd2 = json!({"cross_attention_dim": 1024, "in_channels": 9, "use_linear_projection": true});
        let sdxl = json!({
            "cross_attention_dim": 2048, "addition_embed_type": "text_time", "use_linear_projection": true,
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "in_channels": 8,
        });
        let refiner = json!({
            "cross_attention_dim": 1280, "addition_embed_type": "text_time", "use_linear_projection": true,
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2560, "in_channels": 4,
        });
        let ddpm = json!({"_class_name": "UNet2DModel", "in_channels": 4});
        let families = [&sd1, &sd2, &sdxl, &refiner, &ddpm].map(family);
        assert_eq!(families, ["sd1", "sd2", "sdxl", "sdxl-refiner", "unconditional"]);
        assert_eq!(task(&ddpm, 4), None);
        let tasks = [&sd1, &sd2, &sdxl].map(|unet| task(unet, 4));
        assert_eq!(tasks, [Some("text-to-image"), Some("inpainting"), Some("instruct-pix2pix")]);
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        let odd = json!({
            "addition_embed_type": "text_time", "addition_time_embed_dim": 0,
            "projection_class_embeddings_input_dim": 1, "in_channels": u64::MAX,
        });
        assert_eq!(family(&odd), "sdxl");
        assert_eq!(task(&odd, u64::MAX - 1), None);
    }
}
