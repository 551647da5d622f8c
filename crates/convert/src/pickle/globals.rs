//! The functions and classes that a checkpoint may name. All others are refused, and none is ever run.

use safetensors::Dtype;

use super::dtypes;

/// What a name in the pickle stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// A function of torch that makes a tensor.
    Rebuild(Rebuild),
    /// The class of a storage.
    Storage(Dtype),
    /// An element type, as a value.
    Dtype(&'static str, Dtype),
    /// A class that is read as a dictionary.
    Dict(&'static str),
    /// A class that is read as a plain value.
    Plain(Plain),
    /// `copyreg._reconstructor`, by which protocols 0 and 1 make any object.
    Reconstructor,
    /// A class of which only the arguments and the state are kept.
    Opaque(&'static str),
}

/// The functions of `torch._utils` and `torch._tensor` that make tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rebuild {
    Tensor,
    TensorV2,
    TensorV3,
    Parameter,
    ParameterWithState,
    FromTypeV2,
}

/// Classes whose objects are plain values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plain {
    Size,
    Set,
    FrozenSet,
    Bytes,
    ByteArray,
    Encode,
    List,
    Tuple,
}

/// Dictionaries of other names.
const DICTS: &[&str] = &[
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.Counter",
    "builtins.dict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
];

/// Classes that stand in real checkpoints beside the weights: numpy numbers among the metrics, a device, the class of a
/// callback as the key of its state, paths, the containers of web UI embeddings.
const OPAQUE: &[&str] = &[
    "argparse.Namespace",
    "builtins.complex",
    "builtins.float",
    "builtins.int",
    "builtins.object",
    "builtins.str",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "torch.Tensor",
    "torch.device",
    "torch.nn.modules.container.ParameterDict",
    "torch.nn.modules.container.ParameterList",
    "torch.nn.parameter.Parameter",
];

/// torch's element types and other constants that are values only, read or not as the type of a tensor.
const CONSTANTS: &[&str] = &["torch.strided", "torch.contiguous_format", "torch.channels_last"];

impl Global {
    /// What `name` in `module` stands for, if it is among the few that are known.
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        // The names of Python 2, which protocols up to 2 use.
        let module = match module {
            "__builtin__" => "builtins",
            "copy_reg" => "copyreg",
            other => other,
        };
        match (module, name) {
            ("torch._utils", "_rebuild_tensor") => return Some(Self::Rebuild(Rebuild::Tensor)),
            ("torch._utils", "_rebuild_tensor_v2") => return Some(Self::Rebuild(Rebuild::TensorV2)),
            ("torch._utils", "_rebuild_tensor_v3") => return Some(Self::Rebuild(Rebuild::TensorV3)),
            ("torch._utils", "_rebuild_parameter") => return Some(Self::Rebuild(Rebuild::Parameter)),
            ("torch._utils", "_rebuild_parameter_with_state") => {
                return Some(Self::Rebuild(Rebuild::ParameterWithState));
            }
            ("torch._tensor", "_rebuild_from_type_v2") => return Some(Self::Rebuild(Rebuild::FromTypeV2)),
            ("torch", "Size") => return Some(Self::Plain(Plain::Size)),
            ("builtins", "set") => return Some(Self::Plain(Plain::Set)),
            ("builtins", "frozenset") => return Some(Self::Plain(Plain::FrozenSet)),
            ("builtins", "bytes") => return Some(Self::Plain(Plain::Bytes)),
            ("builtins", "bytearray") => return Some(Self::Plain(Plain::ByteArray)),
            ("builtins", "list") => return Some(Self::Plain(Plain::List)),
            ("builtins", "tuple") => return Some(Self::Plain(Plain::Tuple)),
            ("_codecs", "encode") => return Some(Self::Plain(Plain::Encode)),
            ("copyreg", "_reconstructor") => return Some(Self::Reconstructor),
            ("torch" | "torch.storage", _) => {
                if let Some(dtype) = dtypes::from_storage_class(name) {
                    return Some(Self::Storage(dtype));
                }
            }
            _ => {}
        }
        if let ("torch", Some((torch_name, dtype))) = (module, dtypes::from_torch_name(name)) {
            return Some(Self::Dtype(torch_name, dtype));
        }
        let among = |names: &[&'static str]| {
            names
                .iter()
                .find(|known| {
                    known.strip_suffix(name).and_then(|rest| rest.strip_suffix('.')) == Some(module)
                })
                .copied()
        };
        among(DICTS).map(Self::Dict).or_else(|| among(OPAQUE).or_else(|| among(CONSTANTS)).map(Self::Opaque))
    }

    /// Its name in Python, for messages and as a value.
    pub(super) fn name(self) -> String {
        match self {
            Self::Rebuild(rebuild) => rebuild.name().to_string(),
            Self::Storage(dtype) => format!("torch's storage class of {dtype}"),
            Self::Dtype(name, _) => format!("torch.{name}"),
            Self::Dict(name) | Self::Opaque(name) => name.to_string(),
            Self::Plain(plain) => plain.name().to_string(),
            Self::Reconstructor => "copyreg._reconstructor".to_string(),
        }
    }
}

impl Rebuild {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tensor => "torch._utils._rebuild_tensor",
            Self::TensorV2 => "torch._utils._rebuild_tensor_v2",
            Self::TensorV3 => "torch._utils._rebuild_tensor_v3",
            Self::Parameter => "torch._utils._rebuild_parameter",
            Self::ParameterWithState => "torch._utils._rebuild_parameter_with_state",
            Self::FromTypeV2 => "torch._tensor._rebuild_from_type_v2",
        }
    }
}

impl Plain {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Size => "torch.Size",
            Self::Set => "builtins.set",
            Self::FrozenSet => "builtins.frozenset",
            Self::Bytes => "builtins.bytes",
            Self::ByteArray => "builtins.bytearray",
            Self::Encode => "_codecs.encode",
            Self::List => "builtins.list",
            Self::Tuple => "builtins.tuple",
        }
    }
}
