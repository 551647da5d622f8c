use candle_core::{DType, Device, IndexOp, Tensor};
use candle_diffusers_models::layers::Activation;
use candle_diffusers_models::{ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, EosTokenId};
use candle_diffusers_test_support::{Fixture, assert_close, values};
use candle_nn::VarBuilder;

const BOUND: f64 = 5e-6;

fn fixture() -> Fixture {
    Fixture::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/clip_text/clip_text.safetensors"))
}

fn config(hidden_act: Activation, num_attention_heads: usize, eos_token_id: EosTokenId) -> ClipTextConfig {
    ClipTextConfig {
        vocab_size: 60,
        hidden_size: 24,
        intermediate_size: 32,
        projection_dim: 20,
        num_hidden_layers: 3,
        num_attention_heads,
        max_position_embeddings: 16,
        hidden_act,
        layer_norm_eps: 1e-5,
        eos_token_id,
    }
}

fn weights(fixture: &Fixture, variant: &str, dtype: DType) -> VarBuilder<'static> {
    VarBuilder::from_tensors(fixture.state_dict(&format!("{variant}.model.")), dtype, &Device::Cpu)
}

fn legacy_model(fixture: &Fixture, dtype: DType) -> ClipTextModel {
    let config = config(Activation::QuickGelu, 2, EosTokenId::Legacy);
    ClipTextModel::new(&config, weights(fixture, "legacy", dtype)).unwrap()
}

fn check_text_model(fixture: &Fixture, variant: &str, model: &ClipTextModel) {
    for length in [16, 7] {
        let input_ids = fixture.get("input_ids").narrow(1, 0, length).unwrap();
        let output = model.forward(&input_ids).unwrap();
        let check = |what: &str, actual: &Tensor| {
            let name = format!("{variant}.{length}.{what}");
            assert_close(&name, actual, fixture.get(&name), BOUND);
        };
        check("last_hidden_state", &output.last_hidden_state);
        check("pooler_output", &output.pooler_output);
        if length == 16 {
            check_hidden_states(fixture, variant, model, &output.hidden_states);
        }
    }
}

fn check_hidden_states(fixture: &Fixture, variant: &str, model: &ClipTextModel, hidden_states: &[Tensor]) {
    let input_ids = fixture.get("input_ids");
    let layers = model.num_hidden_layers();
    assert_eq!(hidden_states.len(), layers + 1);
    for (layer, hidden_state) in hidden_states.iter().enumerate() {
        let name = format!("{variant}.16.hidden_states.{layer}");
        assert_close(&name, hidden_state, fixture.get(&name), BOUND);
        let alone = model.hidden_state(input_ids, layer).unwrap();
        assert_eq!(values(&alone), values(hidden_state), "{name}: fewer layers give the same bits");
    }
    let name = format!("{variant}.clip_skip_1");
    let skipped = model.final_layer_norm(&hidden_states[layers - 1]).unwrap();
    assert_close(&name, &skipped, fixture.get(&name), BOUND);
}

#[test]
fn quick_gelu_with_the_legacy_end_of_text_rule_equals_the_reference() {
    let fixture = fixture();
    check_text_model(&fixture, "legacy", &legacy_model(&fixture, DType::F32));
}

#[test]
fn gelu_with_the_first_end_of_text_equals_the_reference() {
    let fixture = fixture();
    let config = ClipTextConfig { layer_norm_eps: 1e-3, ..config(Activation::Gelu, 1, EosTokenId::Id(57)) };
    let model = ClipTextModel::new(&config, weights(&fixture, "gelu", DType::F32)).unwrap();
    check_text_model(&fixture, "gelu", &model);
}

#[test]
fn the_projection_equals_the_reference() {
    let fixture = fixture();
    let config = ClipTextConfig { num_hidden_layers: 2, ..config(Activation::Gelu, 4, EosTokenId::Id(57)) };
    let weights = weights(&fixture, "projection", DType::F32);
    let model = ClipTextModelWithProjection::new(&config, weights).unwrap();
    for length in [16, 7] {
        let input_ids = fixture.get("input_ids").narrow(1, 0, length).unwrap();
        let output = model.forward(&input_ids).unwrap();
        for (what, actual) in
            [("text_embeds", &output.text_embeds), ("last_hidden_state", &output.last_hidden_state)]
        {
            let name = format!("projection.{length}.{what}");
            assert_close(&name, actual, fixture.get(&name), BOUND);
        }
        if length == 16 {
            check_hidden_states(&fixture, "projection", model.text_model(), &output.hidden_states);
        }
    }
}

#[test]
fn every_variant_lists_its_layers() {
    let fixture = fixture();
    let tables = ["token", "position"].map(|kind| format!("text_model.embeddings.{kind}_embedding.weight"));
    let tables = tables.each_ref().map(String::as_str);
    let legacy = legacy_model(&fixture, DType::F32);
    crate::assert_lists_all_layers(&legacy, &fixture.state_dict("legacy.model."), &tables);
    let config = ClipTextConfig { num_hidden_layers: 2, ..config(Activation::Gelu, 4, EosTokenId::Id(57)) };
    let projecting =
        ClipTextModelWithProjection::new(&config, weights(&fixture, "projection", DType::F32)).unwrap();
    crate::assert_lists_all_layers(&projecting, &fixture.state_dict("projection.model."), &tables);
}

#[test]
fn a_prompt_gives_the_same_bits_alone_and_among_others() {
    let fixture = fixture();
    let model = legacy_model(&fixture, DType::F32);
    let input_ids = fixture.get("input_ids");
    let all = model.forward(input_ids).unwrap();
    for prompt in 0..4 {
        let alone = model.forward(&input_ids.i(prompt..prompt + 1).unwrap()).unwrap();
        let hidden_state = all.last_hidden_state.i(prompt..prompt + 1).unwrap();
        assert_eq!(values(&alone.last_hidden_state), values(&hidden_state));
        let pooled = all.pooler_output.i(prompt..prompt + 1).unwrap();
        assert_eq!(values(&alone.pooler_output), values(&pooled));
    }
}

/// The reference's fixture has 60 rows; those from `first` on are taken for rows that are added to a shorter table.
fn split_model(fixture: &Fixture, first: usize) -> (ClipTextModel, Tensor) {
    const TABLE: &str = "text_model.embeddings.token_embedding.weight";
    let mut tensors = fixture.state_dict("legacy.model.");
    let table = tensors[TABLE].clone();
    tensors.insert(TABLE.into(), table.i(..first).unwrap());
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let config = ClipTextConfig { vocab_size: first, ..config(Activation::QuickGelu, 2, EosTokenId::Legacy) };
    (ClipTextModel::new(&config, weights).unwrap(), table.i(first..).unwrap())
}

#[test]
fn added_rows_are_as_good_as_those_of_the_table() {
    let fixture = fixture();
    let (mut model, rows) = split_model(&fixture, 40);
    model.add_token_embeddings(40, &rows.i(..7).unwrap()).unwrap();
    model.add_token_embeddings(47, &rows.i(7..).unwrap()).unwrap();
    assert_eq!(model.vocab_size(), 60);
    check_text_model(&fixture, "legacy", &model);
    let whole = legacy_model(&fixture, DType::F32).forward(fixture.get("input_ids")).unwrap();
    let added = model.forward(fixture.get("input_ids")).unwrap();
    assert_eq!(values(&added.last_hidden_state), values(&whole.last_hidden_state));
    assert_eq!(values(&added.pooler_output), values(&whole.pooler_output));
}

#[test]
fn rows_that_are_taken_away_leave_what_was_loaded() {
    let fixture = fixture();
    let (pristine, rows) = split_model(&fixture, 40);
    let ids = |ids: &[u32]| Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap();
    let run = |model: &ClipTextModel, ids: &Tensor| values(&model.forward(ids).unwrap().last_hidden_state);
    let mut model = pristine.clone();
    model.add_token_embeddings(40, &rows).unwrap();
    let before = run(&model, &ids(&[1, 45, 59, 40]));
    // 45 moves up to 42, 59 to 56.
    model.remove_token_embeddings(&[44, 41, 42]).unwrap();
    let error = model.remove_token_embeddings(&[41, 57]).unwrap_err().to_string();
    assert!(error.contains("57") && error.contains("not added"), "{error}");
    let after = run(&model, &ids(&[1, 42, 56, 40]));
    assert_eq!(before, after);
    let all: Vec<u32> = (40..57).collect();
    model.remove_token_embeddings(&all).unwrap();
    assert_eq!(model.vocab_size(), 40);
    let known = ids(&[1, 39, 7, 0, 22]);
    assert_eq!(run(&model, &known), run(&pristine, &known));
    let error = model.forward(&ids(&[40])).unwrap_err().to_string();
    assert!(error.contains("contains 40, but the vocabulary has 40 tokens"), "{error}");
    assert!(model.remove_token_embeddings(&[]).is_ok() && model.remove_token_embeddings(&[39]).is_err());
}

#[test]
fn rows_may_hide_a_surplus_of_the_table_but_leave_no_gap() {
    let fixture = fixture();
    let (mut model, rows) = split_model(&fixture, 40);
    for (first, vectors, message) in [
        (41, rows.clone(), "first_id is 41, but the table has 40 rows"),
        (40, rows.i(..0).unwrap(), "vectors are [0, 24], expected at least one of width 24"),
        (40, rows.narrow(1, 0, 23).unwrap(), "vectors are [20, 23]"),
    ] {
        let error = model.add_token_embeddings(first, &vectors).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let half = rows.to_dtype(DType::F16).unwrap();
    model.add_token_embeddings(30, &half.i(..2).unwrap()).unwrap();
    assert_eq!(model.vocab_size(), 32);
    assert!(model.add_token_embeddings(40, &rows).is_err());
    model.remove_token_embeddings(&[30, 31]).unwrap();
    assert_eq!(model.vocab_size(), 40);
}

#[test]
fn half_precision_stays_near() {
    let fixture = fixture();
    let input_ids = fixture.get("input_ids").to_dtype(DType::U32).unwrap();
    for (dtype, bound) in [(DType::F16, 5e-3), (DType::BF16, 4e-2)] {
        let output = legacy_model(&fixture, dtype).forward(&input_ids).unwrap();
        assert_eq!(output.last_hidden_state.dtype(), dtype);
        let expected = fixture.get("legacy.16.last_hidden_state");
        assert_close(dtype.as_str(), &output.last_hidden_state, expected, bound);
    }
}

#[test]
fn wrong_inputs_are_errors_that_say_what_is_wrong() {
    let fixture = fixture();
    let model = legacy_model(&fixture, DType::F32);
    let ids = |values: &[i64]| Tensor::from_slice(values, (1, values.len()), &Device::Cpu).unwrap();
    let floats = Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap();
    let wrong = [
        (ids(&[1; 17]), "has 17 tokens, but there are only 16 positions"),
        (ids(&[1, 60]), "contains 60, but the vocabulary has 60 tokens"),
        (ids(&[1, -1]), "contains -1, but the vocabulary has 60 tokens"),
        (ids(&[1, i64::MAX]), "contains 9223372036854775807"),
        (ids(&[]), "is [1, 0] of i64, expected (batch, tokens)"),
        (ids(&[1]).squeeze(0).unwrap(), "is [1] of i64, expected (batch, tokens)"),
        (floats, "is [1, 4] of f32, expected (batch, tokens)"),
    ];
    for (input_ids, message) in wrong {
        let error = model.forward(&input_ids).unwrap_err().to_string();
        assert!(error.contains("CLIPTextModel: input_ids") && error.contains(message), "{error}");
    }
    let error = model.hidden_state(&ids(&[1]), 4).unwrap_err().to_string();
    assert!(error.contains("layers is 4, but there are 3"), "{error}");
}

#[test]
fn a_missing_and_a_wrongly_shaped_tensor_are_named() {
    let fixture = fixture();
    let config = config(Activation::QuickGelu, 2, EosTokenId::Legacy);
    let name = "text_model.encoder.layers.1.mlp.fc1.weight";
    let mut tensors = fixture.state_dict("legacy.model.");
    tensors.insert(name.into(), Tensor::zeros((3, 5), DType::F32, &Device::Cpu).unwrap());
    let weights = VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu);
    let error = ClipTextModel::new(&config, weights).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("[32, 24]") && error.contains("[3, 5]"), "{error}");
    tensors.remove(name);
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let error = ClipTextModel::new(&config, weights).unwrap_err().to_string();
    assert!(error.contains(name), "{error}");
}
