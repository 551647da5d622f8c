use serde_json::Value;

use super::layer::ClipLayerConfig;
use crate::config::ConfigReader;
use crate::error::Result;
use crate::layers::Activation;

/// The `config.json` of a CLIP text encoder, with the fields and defaults of transformers' `CLIPTextConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipTextConfig {
    /// How many token ids there are. Default 49408.
    pub vocab_size: usize,
    /// Width of the hidden states. Default 512.
    pub hidden_size: usize,
    /// Width inside each layer's two-layer perceptron. Default 2048.
    pub intermediate_size: usize,
    /// Width of `text_embeds`; only [`ClipTextModelWithProjection`](super::ClipTextModelWithProjection) uses it. Default 512.
    pub projection_dim: usize,
    /// Default 12.
    pub num_hidden_layers: usize,
    /// Default 8.
    pub num_attention_heads: usize,
    /// The most tokens that a prompt can have. Default 77.
    pub max_position_embeddings: usize,
    /// The nonlinearity of the perceptrons. Default `quick_gelu`.
    pub hidden_act: Activation,
    /// Default 1e-5.
    pub layer_norm_eps: f64,
    /// Which token's hidden state is the pooled one. Default: the first 49407.
    pub eos_token_id: EosTokenId,
}

/// Which position of a prompt gives the pooled output; the config field `eos_token_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EosTokenId {
    /// `eos_token_id` is 2: configs written before transformers 4.31 say so wrongly, and the position of the highest token id (the
    /// first of several) is meant, which is OpenAI CLIP's `<|endoftext|>`. Right for every vocabulary that ends with it.
    Legacy,
    /// The first position with this token id; the first position of all where the prompt has none.
    Id(u32),
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: EosTokenId::Id(49407),
        }
    }
}

/// What transformers writes into every config of CLIP's and its forward pass never reads: which class and version wrote it,
/// training's dropout and initialisation, the tokenizer's other ids, and what belongs to text generation and classification.
pub(crate) const WITHOUT_INFLUENCE: &[&str] = &[
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
];

impl ClipTextConfig {
    /// Reads a text encoder's `config.json`.
    ///
    /// # Errors
    /// When a field has a wrong type or value, is not supported, or is unknown.
    pub fn from_json(config: &Value) -> Result<Self> {
        let mut reader = ConfigReader::new("CLIPTextModel", config)?;
        let default = Self::default();
        reader.only("model_type", "clip_text_model".into())?;
        // Set, it makes diffusers hide the padding from the prompt.
        reader.unsupported(&["use_attention_mask"])?;
        reader.only("pruned_heads", Value::Object(Default::default()))?;
        let config = Self {
            vocab_size: reader.size("vocab_size", default.vocab_size)?,
            hidden_size: reader.size("hidden_size", default.hidden_size)?,
            intermediate_size: reader.size("intermediate_size", default.intermediate_size)?,
            projection_dim: reader.size("projection_dim", default.projection_dim)?,
            num_hidden_layers: reader.size("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: reader.size("num_attention_heads", default.num_attention_heads)?,
            max_position_embeddings: reader
                .size("max_position_embeddings", default.max_position_embeddings)?,
            hidden_act: reader.choice(
                "hidden_act",
                "quick_gelu",
                Activation::NAMES,
                Activation::from_name,
            )?,
            layer_norm_eps: reader.number("layer_norm_eps", default.layer_norm_eps)?,
            eos_token_id: read_eos_token_id(&mut reader, default.eos_token_id)?,
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let expected = format!("a number that divides hidden_size, {}", config.hidden_size);
            return Err(reader.error("num_attention_heads", expected));
        }
        WITHOUT_INFLUENCE.iter().for_each(|field| reader.ignore(field));
        reader.finish()?;
        Ok(config)
    }

    pub(super) fn layer(&self) -> ClipLayerConfig {
        ClipLayerConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_attention_heads: self.num_attention_heads,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        }
    }
}

fn read_eos_token_id(reader: &mut ConfigReader, default: EosTokenId) -> Result<EosTokenId> {
    match reader.value("eos_token_id") {
        None => Ok(default),
        Some(value) => match value.as_u64().map(u32::try_from) {
            Some(Ok(2)) => Ok(EosTokenId::Legacy),
            Some(Ok(id)) => Ok(EosTokenId::Id(id)),
            _ => Err(reader.error("eos_token_id", "one token id, a whole number")),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_empty_config_has_the_defaults_of_transformers() {
        assert_eq!(ClipTextConfig::from_json(&json!({})).unwrap(), ClipTextConfig::default());
    }

    #[test]
    fn the_config_of_stable_diffusion_1_is_read() {
        let config = json!({
            "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu",
            "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072,
            "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
            "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768,
            "torch_dtype": "float32", "transformers_version": "4.22.0.dev0", "vocab_size": 49408
        });
        let config = ClipTextConfig::from_json(&config).unwrap();
        assert_eq!(config.hidden_size, 768);
        assert_eq!(config.projection_dim, 768);
        assert_eq!(config.hidden_act, Activation::QuickGelu);
        assert_eq!(config.eos_token_id, EosTokenId::Legacy);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let refused = [
            (json!({"hidden_act": "relu"}), "`hidden_act` is \"relu\", expected one of"),
            (json!({"hidden_size": "768"}), "`hidden_size` is \"768\", expected a whole number"),
            (json!({"hidden_size": 0}), "`hidden_size` is 0, expected a whole number from 1"),
            (json!({"hidden_size": -1}), "`hidden_size` is -1, expected"),
            (json!({"vocab_size": 1e300}), "`vocab_size` is 1e+300, expected"),
            (json!({"num_hidden_layers": 1u64 << 40}), "`num_hidden_layers` is 1099511627776, expected"),
            (json!({"num_attention_heads": 7}), "`num_attention_heads` is 7, expected a number that divides"),
            (json!({"layer_norm_eps": "tiny"}), "`layer_norm_eps` is \"tiny\", expected a finite number"),
            (json!({"eos_token_id": [2, 3]}), "`eos_token_id` is [2,3], expected one token id"),
            (json!({"eos_token_id": -3}), "`eos_token_id` is -3, expected one token id"),
            (json!({"model_type": "t5"}), "`model_type` is \"t5\", expected \"clip_text_model\""),
            (
                json!({"quantization_config": {"bits": 4}}),
                "`quantization_config` is {\"bits\":4}, expected no such",
            ),
            (json!({"use_attention_mask": true}), "`use_attention_mask` is true, expected null"),
            (json!({"pruned_heads": {"0": [1]}}), "`pruned_heads` is {\"0\":[1]}, expected {}"),
            (json!([1, 2]), "(the whole file)` is [1,2], expected an object"),
        ];
        for (config, message) in refused {
            let error = ClipTextConfig::from_json(&config).unwrap_err().to_string();
            assert!(error.contains("CLIPTextModel config") && error.contains(message), "{error}");
        }
    }
}
