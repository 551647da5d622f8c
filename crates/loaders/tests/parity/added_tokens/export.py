"""The ids that transformers' CLIPTokenizer gives to tokens that are added to it, and to texts with them."""

import json
import sys

import fixture

HERE = fixture.folder()
sys.path.insert(0, str(HERE.parent / "clip_tokenizer"))
from tokenizer_cases import load  # noqa: E402

TOKENS = [
    "<cat>", "<cat>_1", "<cat>_2", "EasyNegative", "cat-toy", "<cat-toy>", "xqz", "my style", "<A:b>", "Straße", "<a></a>",
    "<|cat|>", "_", "\N{CAT FACE}", "e\N{COMBINING ACUTE ACCENT}qz", *[f"<many>_{i}" for i in range(1, 12)], "<many>",
]  # fmt: skip
PROMPTS = [
    "", "<cat>", "<cat> ", " <cat>", "a <cat> b", "a<cat>b", "<cat><cat>", "<cat>,<cat>!", "<CAT> <Cat>", "(<cat>:1.2)", "<cat", "cat>",
    "< cat >", "<cat>_1", "<cat>_2<cat>_1", "<cat>_12", "<cat>1", "a <cat>'s hat", "EasyNegative", "easynegative", "EASYNEGATIVE, bad",
    "uneasynegatively", "cat-toy", "Cat-Toy cat-toys", "<cat-toy>", "cat - toy", "xqz", "XQZxqz axqzb", "my style", "My  Style", "my\tstyle",
    "mystyle", "my styles", "<a:B>", "straße STRASSE Strasse", "<a></a> <a> </a>", "<|cat|>", "<|endoftext|><cat><|startoftext|>",
    "<|ENDOFTEXT|> <cat>", "snake_case_", "\N{CAT FACE}\N{CAT FACE} \N{DOG FACE}", "\u00e9qz e\u0301qz \u00c9QZ", "<many>_1 <many>_10 <many>_11 <many>_2",
    "<many><cat>\n<many>", "a photo of a <cat> and an EasyNegative in my style",
]  # fmt: skip

expected = {}
cases = json.loads((HERE.parent / "clip_tokenizer/cases.json").read_text())
for name in ("shapes", "sd1", "decoder", "added"):
    tokenizer = load(cases[name])
    known = len(tokenizer)
    for token in TOKENS:
        if token not in tokenizer.get_vocab():
            tokenizer.add_tokens(token)
    expected[name] = {
        "known": known,
        "added": {token: tokenizer.convert_tokens_to_ids(token) for token in TOKENS if tokenizer.convert_tokens_to_ids(token) >= known},
        "prompts": [{"text": text, "ids": tokenizer(text).input_ids[1:-1], "tokens": tokenizer.tokenize(text)} for text in PROMPTS],
    }
(HERE / "added_tokens.json").write_text(json.dumps(expected, indent=0))
