//! Every way in which a file can be damaged is an error that names it, and none a panic.

use std::fs;

use candle_diffusers_convert::{Checkpoint, Error, MAX_HEADER_BYTES, ShardIndex, TensorFile};

/// A file with this header and `data_size` bytes of data.
fn file(header: &str, data_size: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data_size).map(|i| i as u8));
    bytes
}

const TWO_TENSORS: &str = r#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}}"#;

fn error_of(bytes: Vec<u8>) -> Error {
    TensorFile::from_bytes("model.safetensors", bytes).expect_err("should be refused")
}

#[track_caller]
fn assert_refused(bytes: Vec<u8>, expected: &str) {
    let message = error_of(bytes).to_string();
    assert!(message.contains("model.safetensors"), "{message}");
    assert!(message.contains(expected), "{message}");
}

#[test]
fn reads_names_shapes_dtypes_ranges_and_metadata() {
    let file = TensorFile::from_bytes("model.safetensors", file(TWO_TENSORS, 26)).unwrap();
    let listed: Vec<_> = file.tensors().iter().map(|t| (t.name.as_str(), t.dtype.to_string())).collect();
    assert_eq!(listed, [("a.weight", "F32".to_string()), ("b", "BF16".to_string())]);
    assert_eq!(file.get("a.weight").unwrap().shape, [2, 3]);
    assert_eq!(file.get("b").unwrap().elements(), 1);
    assert_eq!(file.bytes("a.weight").unwrap(), (0..24).collect::<Vec<u8>>());
    assert_eq!(file.bytes("b").unwrap(), [24, 25]);
    assert_eq!(file.metadata()["format"], "pt");
    assert!(file.get("c").is_none() && file.bytes("c").is_none());
}

#[test]
fn a_mapped_file_reads_as_its_bytes_also_after_release() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, file(TWO_TENSORS, 26)).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let before = file.bytes("a.weight").unwrap().to_vec();
    file.release("a.weight");
    assert_eq!(file.bytes("a.weight").unwrap(), before);
}

#[test]
fn a_file_without_tensors_is_whole() {
    assert!(TensorFile::from_bytes("model.safetensors", file("{}", 0)).unwrap().tensors().is_empty());
    assert!(TensorFile::from_bytes("model.safetensors", file(r#"{"__metadata__":null}"#, 0)).is_ok());
}

#[test]
fn empty_short_and_garbage_files() {
    assert_refused(Vec::new(), "is empty");
    assert_refused(vec![1, 2, 3], "has 3 bytes");
    assert_refused(b"<!DOCTYPE html><html>Not found</html>".to_vec(), "is not a safetensors file");
    assert_refused(
        vec![0x80, 2, 0, 0, 0, 0, 0, 0, 1, 2],
        "the header should be 640 bytes long, but only 2 follow",
    );
    assert_refused(file("not json", 0), "the header is not that of a safetensors file");
    assert_refused(file("[]", 0), "an object of tensors");
    assert_refused(file("{}", 5), "5 bytes follow the last tensor");
    let mut not_utf8 = file("{\"a\":1}", 0);
    not_utf8[10] = 0xff;
    assert_refused(not_utf8, "the header is not that of a safetensors file");
}

#[test]
fn header_lengths() {
    let mut past_end = file(TWO_TENSORS, 26);
    past_end[..8].copy_from_slice(&10_000u64.to_le_bytes());
    assert_refused(past_end, "the header should be 10000 bytes long");
    let mut too_large = file(TWO_TENSORS, 26);
    too_large[..8].copy_from_slice(&(MAX_HEADER_BYTES + 1).to_le_bytes());
    assert_refused(too_large.clone(), "100000001 bytes long");
    too_large[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_refused(too_large, "18446744073709551615 bytes long");
}

#[test]
fn truncated_data_names_the_first_tensor_that_is_not_whole() {
    let mut bytes = file(TWO_TENSORS, 26);
    bytes.truncate(bytes.len() - 1);
    assert_refused(bytes.clone(), "its tensors need 26 bytes after the header, but 25 are there (tensor b ");
    bytes.truncate(bytes.len() - 10);
    assert_refused(bytes, "15 are there (tensor a.weight ");
}

#[test]
fn entries_that_contradict_themselves() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        file(&format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), 8)
    };
    assert_refused(
        one("F32", "[3]", "[0,8]"),
        "tensor t of shape [3] (F32) needs 12 bytes, but its offsets 0..8 give 8",
    );
    assert_refused(one("F4", "[3]", "[0,8]"), "needs 2 bytes");
    assert_refused(one("F33", "[2]", "[0,8]"), "unknown dtype F33");
    assert_refused(one("F32", "[4294967296,4294967296]", "[0,8]"), "impossible shape");
    assert_refused(one("F32", "[18446744073709551615,2]", "[0,8]"), "impossible shape");
    assert_refused(one("F32", "[-1]", "[0,8]"), "header");
    assert_refused(one("F32", "[2]", "[8,0]"), "end before they start");
    assert_refused(one("F32", "[2]", "[18446744073709551607,18446744073709551615]"), "leave a gap");
    assert_refused(
        one("F32", "[1]", "[4,8]"),
        "starts at byte 4 of the data, but the tensors before it end at 0",
    );
    assert_refused(one("F32", "[1]", "[0,4]"), "4 bytes follow");
}

#[test]
fn overlapping_and_doubled_entries() {
    let overlapping = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    assert_refused(file(overlapping, 6), "the offsets overlap");
    let doubled = r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
    assert_refused(file(doubled, 2), "lists tensor a twice");
}

#[test]
fn missing_files_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    let missing = TensorFile::open(folder.path().join("no.safetensors")).unwrap_err();
    assert!(
        matches!(missing, Error::Io { .. }) && missing.to_string().contains("no.safetensors"),
        "{missing}"
    );
    assert!(TensorFile::open(folder.path()).is_err());
}

#[cfg(unix)]
#[test]
fn a_file_name_that_is_not_utf8_is_opened() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(std::ffi::OsStr::from_bytes(b"m\xff.safetensors"));
    fs::write(&path, file(TWO_TENSORS, 26)).unwrap();
    assert_eq!(TensorFile::open(&path).unwrap().tensors().len(), 2);
    fs::write(&path, "").unwrap();
    assert!(TensorFile::open(&path).unwrap_err().to_string().contains("is empty"));
}

#[test]
fn an_index_with_a_shard_elsewhere_is_refused() {
    for shard in
        ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "C:x", "..\\x", "a\0b"]
    {
        let json = serde_json::json!({ "weight_map": { "conv.weight": shard } }).to_string();
        let error = ShardIndex::parse("model.safetensors.index.json", json.as_bytes()).unwrap_err();
        assert!(
            matches!(&error, Error::ShardOutsideFolder { shard: named, .. } if named == shard),
            "{error}"
        );
        assert!(error.to_string().contains("conv.weight"), "{error}");
    }
}

#[test]
fn indices_that_are_none() {
    for json in ["", "{}", "[]", r#"{"weight_map":{}}"#, r#"{"weight_map":{"a":1}}"#, "\u{fffd}"] {
        let error = ShardIndex::parse("i.json", json.as_bytes()).unwrap_err();
        assert!(matches!(error, Error::Index { .. }), "{error}");
    }
}

fn one_tensor(name: &str) -> Vec<u8> {
    file(&format!(r#"{{"{name}":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}"#), 2)
}

#[test]
fn shards() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("m-1.safetensors"), one_tensor("a")).unwrap();
    fs::write(path("m-2.safetensors"), one_tensor("b")).unwrap();
    let write_index = |map: &str| {
        fs::write(
            path("m.safetensors.index.json"),
            format!(r#"{{"metadata":{{"total_size":-1}},"weight_map":{map}}}"#),
        )
    };

    write_index(r#"{"a":"m-1.safetensors","b":"m-2.safetensors"}"#).unwrap();
    let checkpoint = Checkpoint::open(path("m.safetensors.index.json")).unwrap();
    assert_eq!(checkpoint.len(), 2);
    assert_eq!(checkpoint.tensors().count(), 2);
    assert_eq!(checkpoint.bytes("b").unwrap(), [0, 1]);
    assert!(checkpoint.get("b").unwrap().0.source().ends_with("m-2.safetensors"));

    write_index(r#"{"a":"m-1.safetensors"}"#).unwrap();
    assert_eq!(Checkpoint::open(path("m.safetensors.index.json")).unwrap().len(), 1);

    write_index(r#"{"b":"m-1.safetensors"}"#).unwrap();
    let error = Checkpoint::open(path("m.safetensors.index.json")).unwrap_err();
    assert!(error.to_string().contains("tensor b should be in m-1.safetensors"), "{error}");

    write_index(r#"{"a":"m-3.safetensors"}"#).unwrap();
    let error = Checkpoint::open(path("m.safetensors.index.json")).unwrap_err();
    assert!(error.to_string().contains("names the shard m-3.safetensors"), "{error}");
}

#[test]
fn a_tensor_in_two_shards_is_taken_from_the_one_that_the_index_names() {
    let open = |shard: &str| {
        let name = if shard == "3" { "c" } else { "a" };
        TensorFile::from_bytes(shard, one_tensor(name))
    };
    let index = ShardIndex::parse("i", br#"{"weight_map":{"a":"2","c":"3"}}"#).unwrap();
    assert_eq!(Checkpoint::from_index(&index, open).unwrap().get("a").unwrap().0.source(), "2");

    let both = |_: &str| {
        let header = r#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"y":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"z":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
        TensorFile::from_bytes("shard", file(header, 3))
    };
    let index = ShardIndex::parse("i", br#"{"weight_map":{"x":"1","y":"2"}}"#).unwrap();
    let error = Checkpoint::from_index(&index, both).unwrap_err();
    assert!(matches!(&error, Error::InTwoFiles { tensor, .. } if tensor == "z"), "{error}");
}

/// A small generator of numbers, so that the cases are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

#[test]
fn no_cut_and_no_flipped_byte_panics() {
    let whole = file(TWO_TENSORS, 26);
    for length in 0..whole.len() {
        error_of(whole[..length].to_vec());
    }
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + numbers.below(4) {
            let at = numbers.below(bytes.len());
            bytes[at] = match numbers.below(3) {
                0 => numbers.below(256) as u8,
                1 => b"0123456789-[]{}\",:"[numbers.below(18)],
                _ => bytes[at] ^ (1 << numbers.below(8)),
            };
        }
        if numbers.below(4) == 0 {
            bytes.truncate(numbers.below(bytes.len()));
        }
        // Damage in names and numbers can leave a whole file; its tensors must then be readable.
        if let Ok(file) = TensorFile::from_bytes("model.safetensors", bytes) {
            for info in file.tensors() {
                assert_eq!(file.bytes(&info.name).map(<[u8]>::len), Some(info.bytes()));
                info.elements();
            }
        }
    }
}
