//! Files that are cut short, packed in another way, or something else altogether.

use candle_diffusers_convert::PickledFile;

use crate::build::*;

fn whole() -> Vec<Entry> {
    let pickle = state_dict(&tensor(&storage("FloatStorage", 6), 0, &[2, 3], &[3, 1]));
    vec![
        Entry::new("archive/data.pkl", pickle),
        Entry::new("archive/byteorder", "little"),
        Entry::new("archive/data/0", (0..24).collect::<Vec<u8>>()),
    ]
}

#[track_caller]
fn changed(change: impl Fn(&mut Vec<Entry>), expected: &str) {
    let mut entries = whole();
    change(&mut entries);
    assert_refused(archive(&entries), expected);
}

#[test]
fn the_file_that_the_other_tests_damage_is_whole() {
    let file = PickledFile::from_bytes("m", archive(&whole())).unwrap();
    assert_eq!(file.bytes("weight").unwrap(), (0..24).collect::<Vec<u8>>());
    let tensor = file.get("weight").unwrap();
    assert!(file.read_at(tensor, 20, &mut [0; 5]).is_none());
    assert!(file.read_at(tensor, usize::MAX, &mut [0; 5]).is_none());
    let other = PickledFile::from_bytes("m", archive(&whole()[..1]));
    assert!(other.is_err());
}

#[test]
fn other_files() {
    assert_refused(Vec::new(), "it is empty");
    assert_refused(b"<!DOCTYPE html>".to_vec(), "a web page");
    assert_refused(b"version https://git-lfs.github.com/spec/v1".to_vec(), "Git LFS pointer");
    assert_refused(b"\x40\0\0\0\0\0\0\0{\"a\":1}".to_vec(), "a safetensors file");
    assert_refused(b"GGUF\x03\0\0\0".to_vec(), "GGUF");
    assert_refused(b"\x80\x04K\x01.".to_vec(), "a pickle, but not one of torch");
    assert_refused(vec![0; 4096], "it begins with other bytes");
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert_refused(tar, "the tar archive that torch wrote in 2016");
    assert_refused(archive(&[Entry::new("word/document.xml", "<a/>")]), "without a data.pkl");
    changed(|entries| entries.push(Entry::new("archive/constants.pkl", ".")), "TorchScript");
    changed(
        |entries| entries.push(Entry::new("other/data.pkl", ".")),
        "both archive/data.pkl and other/data.pkl",
    );
    changed(|entries| entries[1].data = b"big".to_vec(), "the byte order \"big\"");
    assert!(PickledFile::open(std::env::temp_dir()).unwrap_err().to_string().contains("is not a file"));
    assert!(PickledFile::looks_like_one(&archive(&whole())) && !PickledFile::looks_like_one(b"{}"));
}

#[test]
fn archives_that_are_packed_or_inconsistent() {
    changed(|entries| entries[2].method = 8, "archive/data/0 is compressed (method 8)");
    changed(|entries| entries[0].method = 8, "archive/data.pkl is compressed (method 8)");
    changed(|entries| entries[2].flags = 1, "archive/data/0 is encrypted");
    changed(|entries| entries[2].claimed_size = Some(25), "does not end before the directory");
    changed(|entries| entries[2].claimed_size = Some(u32::MAX - 1), "does not end before the directory");
    changed(|entries| entries[2].claimed_size = Some(u32::MAX), "lacks the 64-bit sizes");
    changed(|entries| entries[2].claimed_size = Some(20), "should have 24 bytes, but has 20");
    changed(|entries| entries[2].claimed_offset = Some(0), "archive/data/0 has another name at byte 0");
    changed(|entries| entries[2].claimed_offset = Some(1), "archive/data/0 is not at byte 1");
    changed(|entries| entries[2].claimed_offset = Some(u32::MAX - 1), "is not at byte");
    changed(|entries| entries[0].claimed_size = Some(4000), "does not end before the directory");
    let overlap = whole()[0].data.len() as u32 + 1;
    changed(
        |entries| entries[0].claimed_size = Some(overlap),
        "archive/data.pkl and archive/byteorder overlap",
    );
    changed(|entries| entries.push(entries[2].clone()), "two entries called archive/data/0");
    changed(
        |entries| entries.truncate(2),
        "the values of storage 0 should be in archive/data/0, which is not there",
    );
    // 64-bit sizes, first right and then beyond the file.
    let wide = |size: u64| {
        let mut extra = vec![1, 0, 16, 0];
        extra.extend(size.to_le_bytes());
        extra.extend(size.to_le_bytes());
        move |entries: &mut Vec<Entry>| {
            entries[2].claimed_size = Some(u32::MAX);
            entries[2].extra = extra.clone();
        }
    };
    let mut entries = whole();
    wide(24)(&mut entries);
    assert!(PickledFile::from_bytes("m", archive(&entries)).is_ok());
    changed(wide(u64::MAX), "does not end before the directory");
    changed(wide(1 << 40), "does not end before the directory");
}

#[test]
fn too_many_entries_are_refused_before_they_are_read() {
    let mut file = archive(&whole());
    let end = file.len() - 22;
    let directory = file[end + 12..end + 20].to_vec();
    let mut wide = b"PK\x06\x06".to_vec();
    wide.extend([0; 28]);
    wide.extend(100_001u64.to_le_bytes());
    wide.extend([&directory[..4], &[0; 4], &directory[4..], &[0; 4]].concat());
    wide.extend(b"PK\x06\x07\0\0\0\0");
    wide.extend((end as u64).to_le_bytes());
    wide.extend(1u32.to_le_bytes());
    file.splice(end..end, wide.clone());
    assert_refused(file.clone(), "100001 entries in the zip archive, at most 100000");
    file[end + 32..end + 40].copy_from_slice(&3u64.to_le_bytes());
    assert!(PickledFile::from_bytes("m", file.clone()).is_ok(), "a 64-bit directory");
    file[end + 48..end + 56].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_refused(file.clone(), "does not lie in the file");
    file[end + 56 + 8..end + 56 + 16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_refused(file, "64-bit end record");
}

#[test]
fn every_file_is_refused_wherever_it_is_cut() {
    let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/pickle"));
    for name in ["lightning.ckpt", "lightning_legacy.ckpt", "parts.pt"] {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        assert!(PickledFile::from_bytes("m", bytes.clone()).is_ok());
        for length in 0..bytes.len() {
            refusal(bytes[..length].to_vec());
        }
    }
    assert_pickle_refused(b"\x80", "cut short: 1 bytes are needed");
    assert_pickle_refused(b"", "cut short: 1 bytes are needed");
    assert_pickle_refused(b"cos", "for a line");
}

#[test]
fn the_old_format_says_the_same_thing_everywhere() {
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    let object = state_dict(&tensor(&storage("FloatStorage", 2), 0, &[2], &[1]));
    let file = |version: &[u8], sizes: &[u8], keys: &[u8], values: &[u8]| {
        [&magic[..], version, sizes, &object, keys, values].concat()
    };
    let (version, sizes, keys) = (b"M\xe9\x03.", b"}.", b"]X\x01\0\0\x000a.");
    let values = [&2u64.to_le_bytes()[..], &[0; 8]].concat();
    assert!(PickledFile::from_bytes("m", file(version, sizes, keys, &values)).is_ok());
    assert_refused(file(b"K\x07.", sizes, keys, &values), "the format's version is 7, not 1001");
    assert_refused(file(b"N.", sizes, keys, &values), "the format's version is None");
    assert_refused(file(version, b"N.", keys, &values), "the machine's sizes are None");
    assert_refused(file(version, sizes, b"].", &values), "the values of storage 0 should be in the list");
    assert_refused(file(version, sizes, b"}.", &values), "keys are a dict, not a list");
    assert_refused(file(version, sizes, b"]X\x01\0\0\x001a.", &values), "storage 1 is listed, but no tensor");
    assert_refused(file(version, sizes, b"]X\x01\0\0\x000aX\x01\0\0\x000a.", &values), "listed twice");
    assert_refused(file(version, sizes, keys, &values[..4]), "8 bytes are needed");
    assert_refused(file(version, sizes, keys, &values[..15]), "8 bytes are needed");
    let wrong = [&3u64.to_le_bytes()[..], &[0; 12]].concat();
    assert_refused(file(version, sizes, keys, &wrong), "should have 8 bytes, but has 3 elements");
    let negative = [&(-2i64).to_le_bytes()[..], &[0; 8]].concat();
    assert_refused(file(version, sizes, keys, &negative), "but has -2 elements");
}
