//! Random damage to real files, and random pickles. A few seconds by default; `PICKLE_FUZZ_SECONDS` makes it longer and
//! `PICKLE_FUZZ_SEED` other. A case that fails is written to the folder for temporary files, and the message says where; it is
//! then kept in `tests/bad_pickles/found/`.

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use candle_diffusers_convert::PickledFile;

use crate::build::{checkpoint, storage, tensor};

/// Xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit.max(1)
    }

    fn pick<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }
}

/// Opens `bytes` and, when they are a checkpoint, looks at all that is in it.
fn exercise(bytes: &[u8]) -> bool {
    let Ok(file) = PickledFile::from_bytes("fuzz", bytes.to_vec()) else { return false };
    for (name, tensor) in file.tensors() {
        let read = file.bytes(name).expect("every tensor that is listed can be read");
        assert_eq!(read.len(), tensor.bytes());
        let mut part = vec![0; tensor.bytes().min(5)];
        file.read_at(tensor, tensor.bytes() - part.len(), &mut part).expect("within the tensor");
        assert_eq!(part, read[read.len() - part.len()..]);
        file.release(name);
    }
    true
}

#[track_caller]
fn check(bytes: &[u8]) -> bool {
    let started = Instant::now();
    let opened = catch_unwind(|| exercise(bytes));
    let slow = started.elapsed() > Duration::from_secs(5);
    if opened.is_err() || slow {
        let path = std::env::temp_dir().join(format!("pickle-fuzz-{}.bin", bytes.len()));
        std::fs::write(&path, bytes).unwrap();
        panic!("{} (slow: {slow})", path.display());
    }
    opened.unwrap()
}

fn fuzz(salt: u64, mut case: impl FnMut(&mut Random) -> Vec<u8>) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed: u64 = number("PICKLE_FUZZ_SEED").unwrap_or(1);
    let time = Duration::from_secs(number("PICKLE_FUZZ_SECONDS").unwrap_or(2));
    let mut random = Random((seed << 8) + salt);
    let started = Instant::now();
    let (mut cases, mut opened) = (0u64, 0u64);
    while started.elapsed() < time {
        let bytes = case(&mut random);
        opened += u64::from(check(&bytes));
        cases += 1;
    }
    println!("{cases} cases, {opened} of them opened");
    assert!(opened > 0, "all cases are refused at once: they reach nothing");
}

fn fixtures() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/pickle");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "pt" || extension == "ckpt"));
    files.sort();
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Changes a few bytes of `bytes`.
fn damage(random: &mut Random, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at.max(1)),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next() as u8,
            3 => bytes[at] = *random.pick(b"\0\x01\x7f\x80\xff.(t)}]"),
            4 => {
                let end = (at + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            5 => {
                let other = random.pick(others);
                let start = random.below(other.len());
                let end = (start + random.below(64)).min(other.len());
                bytes.splice(at..at, other[start..end].iter().copied());
            }
            6 => {
                let value = *random.pick(&[0u64, 1, u64::MAX, i64::MAX as u64, 1 << 31, u64::from(u32::MAX)]);
                let count = (*random.pick(&[2, 4, 8])).min(bytes.len() - at);
                bytes[at..at + count].copy_from_slice(&value.to_le_bytes()[..count]);
            }
            _ => {
                let end = (at + random.below(32)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
}

#[test]
fn damaged_files() {
    let files = fixtures();
    fuzz(1, |random| {
        let mut bytes = random.pick(&files).clone();
        damage(random, &mut bytes, &files);
        bytes
    });
}

/// Damage to the pickle only, in an archive that is whole, so that nothing else refuses it first.
#[test]
fn damaged_pickles_in_whole_archives() {
    let pickles: Vec<Vec<u8>> = fixtures().into_iter().filter_map(|bytes| pickle_of(&bytes)).collect();
    assert!(pickles.len() > 5);
    fuzz(2, |random| {
        let mut pickle = random.pick(&pickles).clone();
        damage(random, &mut pickle, &pickles);
        checkpoint(&pickle, 256)
    });
}

/// The first entry of an archive, which is its pickle; its length is where the STOP before the next entry's header is.
fn pickle_of(bytes: &[u8]) -> Option<Vec<u8>> {
    let bytes = bytes.strip_prefix(b"PK\x03\x04")?;
    let start = bytes.iter().position(|&byte| byte == 0x80)?;
    let end = bytes.windows(4).position(|window| window == b"PK\x07\x08" || window == b"PK\x03\x04")?;
    let pickle = bytes.get(start..end)?;
    Some(pickle.to_vec())
}

/// Rows of opcodes with arguments that fit them, so that most of the machine is reached.
#[test]
fn random_pickles() {
    let float = tensor(&storage("FloatStorage", 6), 0, &[2, 3], &[3, 1]);
    let pieces: Vec<Vec<u8>> = [
        &b"N"[..],
        b"\x88",
        b"\x89",
        b"K\x05",
        b"M\xff\x01",
        b"J\xff\xff\xff\xff",
        b"I7\n",
        b"L99L\n",
        b"F1.5\n",
        b"G?\xf0\0\0\0\0\0\0",
        b"\x8a\x01\x80",
        b"\x8a\x09\x01\x02\x03\x04\x05\x06\x07\x08\x09",
        b"X\x01\0\0\0a",
        b"X\x05\0\0\0model",
        b"X\x0a\0\0\0state_dict",
        b"U\x02\xff\xfe",
        b"S'x\\n'\n",
        b"Vu\\u00e9\n",
        b"\x8c\x01b",
        b"B\x02\0\0\0\0\x01",
        b"C\x01\0",
        b"\x96\x01\0\0\0\0\0\0\0z",
        b"]",
        b"l",
        b")",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"}",
        b"d",
        b"\x8f",
        b"\x91",
        b"a",
        b"e",
        b"s",
        b"u",
        b"\x90",
        b"(",
        b"(",
        b"(",
        b"0",
        b"1",
        b"2",
        b"q\x00",
        b"q\x01",
        b"h\x00",
        b"h\x01",
        b"\x94",
        b"p3\n",
        b"g3\n",
        b"r\x04\0\0\0",
        b"j\x04\0\0\0",
        b"R",
        b"R",
        b"\x81",
        b"\x92",
        b"b",
        b"o",
        b"Q",
        b"\x80\x04",
        b"ccollections\nOrderedDict\n",
        b"cbuiltins\nset\n",
        b"c_codecs\nencode\n",
        b"X\x06\0\0\0latin1",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_tensor_v3\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch._tensor\n_rebuild_from_type_v2\n",
        b"ctorch\nTensor\n",
        b"ctorch\nfloat16\n",
        b"ctorch\nHalfStorage\n",
        b"ctorch\nSize\n",
        b"cnumpy\ndtype\n",
        b"ccopyreg\n_reconstructor\n",
        b"cbuiltins\nobject\n",
        b"ctorch.nn.modules.container\nParameterDict\n",
        b"X\x0b\0\0\0_parameters",
        b"(K\x02K\x03t",
        b"(K\x01K\x02t",
        b"iargparse\nNamespace\n",
        &storage("FloatStorage", 6),
        &storage("ByteStorage", 24),
        &float,
        &float,
    ]
    .iter()
    .map(|piece| piece.to_vec())
    .collect();
    fuzz(3, |random| {
        let mut pickle = if random.below(2) == 0 { b"}(X\x01\0\0\0k".to_vec() } else { b"".to_vec() };
        for _ in 0..random.below(40) {
            pickle.extend(random.pick(&pieces));
        }
        if pickle.starts_with(b"}(") {
            pickle.push(b'u');
        }
        pickle.push(b'.');
        checkpoint(&pickle, 24)
    });
}

#[test]
fn what_earlier_runs_have_found() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bad_pickles/found");
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        check(&std::fs::read(entry.unwrap().path()).unwrap());
    }
}
