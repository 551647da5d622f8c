//! Pickles that would run something, or that claim more than there is.

use candle_diffusers_convert::PickledFile;
use candle_diffusers_convert::pickle::{
    MAX_PICKLE_DEPTH, MAX_PICKLE_MEMO, MAX_PICKLE_RANK, MAX_PICKLE_VALUES,
};

use crate::build::*;

#[test]
fn functions_are_refused_by_name_however_they_are_called() {
    let system = "imports system from os";
    // REDUCE, INST, OBJ, NEWOBJ, NEWOBJ_EX, STACK_GLOBAL, BUILD on what a call gave: the import itself is refused.
    assert_pickle_refused(b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.", system);
    assert_pickle_refused(b"(X\x04\0\0\0trueios\nsystem\n.", system);
    assert_pickle_refused(b"(cos\nsystem\nX\x04\0\0\0trueo.", system);
    assert_pickle_refused(b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85\x81.", system);
    assert_pickle_refused(b"\x80\x04cos\nsystem\nX\x04\0\0\0true\x85}\x92.", system);
    assert_pickle_refused(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", system);
    assert_pickle_refused(b"\x80\x02cbuiltins\neval\nX\x01\0\0\x001\x85R}b.", "imports eval from builtins");
    assert_pickle_refused(b"\x80\x02c__builtin__\neval\n.", "imports eval from __builtin__");
    // Never called, hidden in a memo, behind a name with dots, or with a module that only looks like a known one.
    assert_pickle_refused(b"\x80\x02cnt\nsystem\nq\x000}.", "imports system from nt");
    assert_pickle_refused(b"\x80\x04\x8c\x05torch\x8c\x07load.\xc2\x85\x93.", "imports load.");
    assert_pickle_refused(b"\x80\x02ctorch\nhub.load\n.", "imports hub.load from torch");
    assert_pickle_refused(
        b"\x80\x02ccollections\nOrderedDict.get\n.",
        "imports OrderedDict.get from collections",
    );
    assert_pickle_refused(b"\x80\x02cnumpy.core.multiarray.\nscalar\n.", "imports scalar");
    assert_pickle_refused(b"\x80\x02c\ntorch.device\n.", "imports torch.device from ");
    assert_pickle_refused(b"\x80\x02cbuiltins\ngetattr\n.", "imports getattr from builtins");
    assert_pickle_refused(
        b"\x80\x02ctorch._utils\n_rebuild_qtensor\n.",
        "imports _rebuild_qtensor from torch._utils",
    );
    // What is imported may not break the message.
    let message = refusal(checkpoint(&[&b"\x80\x02ca\x1b[31m\rb\n"[..], &[b'x'; 5000], b"\n."].concat(), 24));
    assert!(!message.contains('\x1b') && message.len() < 600, "{message}");
}

#[test]
fn the_same_in_the_old_format() {
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    assert_refused(
        [&magic[..], b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R."].concat(),
        "imports system from posix",
    );
    // In the pickles around the object as well.
    assert_refused([&magic[..15], b"\x80\x02cos\nsystem\n."].concat(), "imports system from os");
    assert_refused([&magic[..], b"}.\x80\x02cos\nsystem\n."].concat(), "imports system from os");
    let file = PickledFile::from_bytes("m", [&magic[..], b"}.]."].concat()).unwrap();
    assert_eq!(file.tensors().len(), 0);
}

#[test]
fn known_functions_take_only_what_torch_gives_them() {
    assert_pickle_refused(
        &state_dict(b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
        "_rebuild_tensor_v2 with nothing",
    );
    assert_pickle_refused(
        &state_dict(b"ctorch._utils\n_rebuild_parameter\nN\x85R"),
        "_rebuild_parameter with (None)",
    );
    assert_pickle_refused(b"ccollections\nOrderedDict\nK\x01\x85R.", "OrderedDict with (an int)");
    assert_pickle_refused(b"cbuiltins\nset\nNN\x86R.", "builtins.set with (None, None)");
    assert_pickle_refused(
        b"c_codecs\nencode\nX\x03\0\0\0\xe2\x82\xacX\x06\0\0\0latin1\x86R.",
        "characters 0 to 255",
    );
    assert_pickle_refused(b"c_codecs\nencode\nX\x01\0\0\0aX\x04\0\0\0zlib\x86R.", "_codecs.encode with");
    assert_pickle_refused(b"ctorch\nfloat16\n)R.", "nothing to call");
    assert_pickle_refused(b"ctorch\nFloatStorage\n)R.", "nothing to call");
    assert_pickle_refused(b"N)R.", "None is called");
    assert_pickle_refused(b"Nb.", "empty stack");
    assert_pickle_refused(b"N}b.", "a state is given to None");
    assert_pickle_refused(b"](K\x01K\x02u.", "values are put into a list");
    assert_pickle_refused(b"}K\x01a.", "values are put into a dict");
    assert_pickle_refused(b"}(K\x01u.", "a key without a value");
    assert_pickle_refused(b"cargparse\nNamespace\n)}X\x01\0\0\0aNs\x92.", "named arguments");
}

#[test]
fn opcodes_that_reach_outside_the_file() {
    assert_pickle_refused(b"Pkey\n.", "a storage named by a line of text");
    assert_pickle_refused(b"\x82\x01.", "a registry");
    assert_pickle_refused(b"\x97.", "bytes from outside");
    assert_pickle_refused(b"\x98.", "bytes from outside");
    assert_pickle_refused(b"\xff.", "opcode 0xff, which is none");
    assert_pickle_refused(b"\x80\x06.", "protocol 6");
}

#[test]
fn containers_that_contain_themselves_or_too_much() {
    assert_pickle_refused(b"]q\x00h\x00a.", "a list that contains itself");
    assert_pickle_refused(b"}q\x00X\x01\0\0\0ah\x00s.", "a dict that contains itself");
    assert_pickle_refused(b"cargparse\nNamespace\n)\x81q\x00h\x00b.", "a object that contains itself");
    let nested =
        |depth: usize| checkpoint(&[vec![b']'; depth], vec![b'a'; depth - 1], b".".to_vec()].concat(), 0);
    assert!(PickledFile::from_bytes("m", nested(MAX_PICKLE_DEPTH)).is_ok());
    assert_refused(nested(MAX_PICKLE_DEPTH + 1), "101 containers in each other, at most 100");
    assert_refused(nested(300_000), "containers in each other");
    // Deep only together: 60 lists are built first, and lie in 60 others afterwards.
    let deep = |around: usize| {
        let (open, close) = (vec![b']'; around], vec![b'a'; around]);
        let inner = [vec![b']'; 60], vec![b'a'; 59]].concat();
        checkpoint(&[&b"]"[..], &inner, b"q\x00a", &open, b"h\x00", &close, b"a."].concat(), 0)
    };
    assert!(PickledFile::from_bytes("m", deep(39)).is_ok());
    assert_refused(deep(40), "containers in each other");
    // Each list holds the one before it twice: 2^60 values.
    let mut doubled = b"]q\x00".to_vec();
    for index in 0..60 {
        doubled.extend([b']', b'h', index, b'a', b'h', index, b'a', b'q', index + 1]);
    }
    doubled.push(b'.');
    assert_pickle_refused(&doubled, "values, counted in each place where they are used,");
}

#[test]
fn more_values_than_a_checkpoint_has() {
    let over = MAX_PICKLE_VALUES + 1;
    assert_pickle_refused(&vec![b'N'; over], "750001 values in one pickle, at most 750000");
    assert_pickle_refused(&vec![b'('; over], "values in one pickle");
    assert_pickle_refused(&[b"N".to_vec(), vec![b'2'; over]].concat(), "values in one pickle");
    let memo: Vec<u8> =
        (0..=MAX_PICKLE_MEMO as u32).flat_map(|i| [&b"r"[..], &i.to_le_bytes()].concat()).collect();
    assert_pickle_refused(
        &[b"N".to_vec(), memo].concat(),
        "500001 entries in the pickle's memo, at most 500000",
    );
    // One list of 100,000 that short calls copy.
    let long = [&b"("[..], &[b'N'; 100_000], b"tq\x00"].concat();
    let copies = b"cargparse\nNamespace\nh\x00\x81".repeat(100);
    assert_pickle_refused(&[long, copies].concat(), "values copied by one pickle");
}

#[test]
fn strings_and_numbers_beyond_sense() {
    assert_pickle_refused(b"X\xff\xff\xff\xff", "4294967295 bytes in one string, at most 16777216");
    assert_pickle_refused(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "bytes in one string");
    assert_pickle_refused(b"B\xff\xff\xff\x00", "16777215 bytes are needed");
    assert_pickle_refused(b"T\xff\xff\xff\xff", "negative length");
    assert_pickle_refused(b"\x8b\xff\xff\xff\xff", "negative length");
    assert_pickle_refused(b"\x8b\x01\x04\0\0", "1025 bytes in one integer");
    assert_pickle_refused(&[&b"L"[..], &[b'9'; 5000], b"L\n."].concat(), "characters in a decimal integer");
    assert_pickle_refused(b"I12x\n.", "\"12x\" is no integer");
    assert_pickle_refused(b"F1e\n.", "\"1e\" is no number");
    assert_pickle_refused(b"X\x02\0\0\0\xff\xff.", "not UTF-8");
    assert_pickle_refused(b"Sabc\n.", "without quotes");
    assert_pickle_refused(b"S'\\\n.", "a string without quotes");
    assert_pickle_refused(b"S'\\xg0'\n.", "an escape that is none");
    assert_pickle_refused(b"V\\ud800\n.", "no character");
    assert_pickle_refused(b"V\\u12\n.", "no character");
    assert_pickle_refused(b"h\x07.", "memo 7 is used before it is set");
    assert_pickle_refused(b"g-1\n.", "a memo's number");
}

#[test]
fn tensors_that_reach_out_of_their_storage() {
    let claim = |offset: i64, shape: &[i64], strides: &[i64]| {
        state_dict(&tensor(&storage("FloatStorage", 6), offset, shape, strides))
    };
    assert!(PickledFile::from_bytes("m", checkpoint(&claim(0, &[2, 3], &[3, 1]), 24)).is_ok());
    for (offset, shape, strides) in [
        (1, &[2, 3][..], &[3, 1][..]),
        (-1, &[1], &[1]),
        (0, &[-1], &[1]),
        (0, &[2, 3], &[3, -1]),
        (0, &[2, 3], &[3]),
        (0, &[7], &[1]),
        (0, &[2], &[6]),
        (0, &[i64::MAX, i64::MAX], &[1, 1]),
        (0, &[2], &[i64::MAX]),
        (i64::MAX, &[1], &[1]),
        (0, &[1 << 62], &[0]),
        (0, &[2, 2, 2], &[i64::MAX, i64::MAX, i64::MAX]),
        (0, &[i64::MAX, i64::MAX, 0], &[1, 1, 1]),
    ] {
        assert_pickle_refused(&claim(offset, shape, strides), "does not lie in its storage 0 of 24 bytes");
    }
    assert_pickle_refused(&claim(0, &[1 << 40], &[0]), "bytes in a tensor that repeats a smaller storage");
    let rank = MAX_PICKLE_RANK + 1;
    assert_pickle_refused(&claim(0, &vec![1; rank], &vec![1; rank]), "65 axes in one tensor, at most 64");
    assert_pickle_refused(
        &state_dict(&tensor(&storage("FloatStorage", 7), 0, &[6], &[1])),
        "should have 28 bytes, but has 24",
    );
    assert_pickle_refused(&state_dict(&storage("FloatStorage", -1)), "storage 0 has -1 elements");
    assert_pickle_refused(&state_dict(&storage("DoubleStorage", i64::MAX)), "elements");
    let two =
        [b"]".to_vec(), storage("FloatStorage", 6), b"a".to_vec(), storage("HalfStorage", 6), b"a.".to_vec()];
    assert_pickle_refused(&two.concat(), "storage 0 should have 24 bytes, but has 12");
    assert_pickle_refused(
        &state_dict(&storage("QInt8Storage", 6)),
        "torch.QInt8Storage is an element type that is not read",
    );
    assert_pickle_refused(b"(X\x06\0\0\0moduleNNNNtQ.", "a storage is named by");
    assert_pickle_refused(b"NQ.", "a storage is named by None");
}

#[test]
fn names() {
    let one = tensor(&storage("FloatStorage", 6), 0, &[6], &[1]);
    let dict = |entries: &[(&str, &[u8])]| {
        let mut bytes = b"}(".to_vec();
        for (name, value) in entries {
            bytes.extend(b"X");
            bytes.extend((name.len() as u32).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(*value);
        }
        bytes.push(b'u');
        bytes
    };
    let file = |value: Vec<u8>| checkpoint(&[value, b".".to_vec()].concat(), 24);
    let twice = dict(&[("a.b", &one), ("a", &dict(&[("b", &one)]))]);
    assert_refused(file(twice), "two tensors called a.b");
    assert_refused(file(dict(&[(&"x".repeat(1025), &one)])), "1025 bytes in one name, at most 1024");
    // A key that comes twice has its last value, as in Python.
    let last = PickledFile::from_bytes("m", file(dict(&[("a", b"N"), ("a", &one)]))).unwrap();
    assert_eq!(last.tensors().map(|(name, _)| name).collect::<Vec<_>>(), ["a"]);
    // Averaged weights are taken when there are no others, and noted when there are.
    let inner = dict(&[("w", &one)]);
    let both = PickledFile::from_bytes("m", file(dict(&[("ema", &inner), ("model", &inner)]))).unwrap();
    assert_eq!(both.tensors().map(|(name, _)| name).collect::<Vec<_>>(), ["w"]);
    assert_eq!(both.bookkeeping()[0].name, "ema");
    assert_eq!(both.bookkeeping()[0].tensors, 1);
    let alone =
        PickledFile::from_bytes("m", file(dict(&[("params_ema", &inner), ("iter", b"K\x05")]))).unwrap();
    assert!(alone.get("w").is_some());
    assert_eq!(alone.metadata()["iter"], "5");
    // A part that is not known to be something else keeps all of them: nothing is dropped.
    let parts = PickledFile::from_bytes("m", file(dict(&[("model", &inner), ("vae", &inner)]))).unwrap();
    let mut names: Vec<&str> = parts.tensors().map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!(names, ["model.w", "vae.w"]);
}
