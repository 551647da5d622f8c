//! Checkpoints made byte by byte.

use candle_diffusers_convert::PickledFile;

/// An entry of an archive, with what its headers say of it.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
    pub(crate) method: u16,
    pub(crate) flags: u16,
    /// What the directory says in place of the size.
    pub(crate) claimed_size: Option<u32>,
    /// What the directory says in place of where the entry is.
    pub(crate) claimed_offset: Option<u32>,
    /// What the directory has as extra field.
    pub(crate) extra: Vec<u8>,
}

impl Entry {
    pub(crate) fn new(name: &str, data: impl Into<Vec<u8>>) -> Self {
        let (name, data) = (name.to_string(), data.into());
        Self { name, data, method: 0, flags: 0, claimed_size: None, claimed_offset: None, extra: Vec::new() }
    }
}

/// A zip archive of `entries`.
pub(crate) fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for entry in entries {
        let offset = entry.claimed_offset.unwrap_or(file.len() as u32);
        let size = entry.claimed_size.unwrap_or(entry.data.len() as u32);
        let mut fields = Vec::new();
        for short in [20, entry.flags, entry.method, 0, 0] {
            fields.extend(u16::to_le_bytes(short));
        }
        for long in [0, size, size] {
            fields.extend(u32::to_le_bytes(long));
        }
        fields.extend((entry.name.len() as u16).to_le_bytes());
        file.extend(b"PK\x03\x04");
        file.extend(&fields);
        file.extend([0, 0]);
        file.extend(entry.name.as_bytes());
        file.extend(&entry.data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&fields);
        directory.extend((entry.extra.len() as u16).to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(entry.name.as_bytes());
        directory.extend(&entry.extra);
    }
    let start = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend((entries.len() as u16).to_le_bytes());
    file.extend((entries.len() as u16).to_le_bytes());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

/// A checkpoint in torch's archive with this pickle and a storage `0` of `storage` bytes.
pub(crate) fn checkpoint(pickle: &[u8], storage: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..storage).map(|byte| byte as u8).collect();
    archive(&[
        Entry::new("archive/data.pkl", pickle),
        Entry::new("archive/byteorder", "little"),
        Entry::new("archive/data/0", data),
    ])
}

/// INT with this value, as bytes of a pickle.
pub(crate) fn int(value: i64) -> Vec<u8> {
    format!("I{value}\n").into_bytes()
}

/// A tuple of these integers, as bytes of a pickle.
pub(crate) fn ints(values: &[i64]) -> Vec<u8> {
    let mut bytes = b"(".to_vec();
    values.iter().for_each(|&value| bytes.extend(int(value)));
    bytes.push(b't');
    bytes
}

/// The storage `0` of `count` elements of the class `class`, as bytes of a pickle.
pub(crate) fn storage(class: &str, count: i64) -> Vec<u8> {
    [
        b"(X\x07\0\0\0storage",
        format!("ctorch\n{class}\n").as_bytes(),
        b"X\x01\0\0\x000X\x03\0\0\0cpu",
        &int(count),
        b"tQ",
    ]
    .concat()
}

/// A tensor of this storage, as bytes of a pickle.
pub(crate) fn tensor(storage: &[u8], offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let global: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n(";
    [global, storage, &int(offset), &ints(shape), &ints(strides), b"\x89NtR"].concat()
}

/// A pickle of `{"weight": value}`.
pub(crate) fn state_dict(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}X\x06\0\0\0weight", value, b"s."].concat()
}

/// What is said of the file `bytes`.
#[track_caller]
pub(crate) fn refusal(bytes: Vec<u8>) -> String {
    let message = PickledFile::from_bytes("model.ckpt", bytes).expect_err("should be refused").to_string();
    assert!(message.starts_with("model.ckpt: "), "{message}");
    assert!(!message.contains('\n') && message.len() < 2000, "{message}");
    message
}

/// Fails unless the file is refused with a message that has `expected` in it.
#[track_caller]
pub(crate) fn assert_refused(bytes: Vec<u8>, expected: &str) {
    let message = refusal(bytes);
    assert!(message.contains(expected), "{expected:?} is not in: {message}");
}

/// Fails unless the archive with this pickle and 24 bytes of storage is refused with a message that has `expected` in it.
#[track_caller]
pub(crate) fn assert_pickle_refused(pickle: &[u8], expected: &str) {
    assert_refused(checkpoint(pickle, 24), expected);
}
