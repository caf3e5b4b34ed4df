"""Checks of model files from elsewhere, before a library reads them.

No function here runs code of a file. Weights are read as safetensors, or by torch with ``weights_only``.
"""

import io
import json
import math
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

MAX_INFLATION = 3
"""Maximum ratio of the sizes of an archive's members and of the archive. torch does not compress its archives."""
MAX_JSON_BYTES = 2**28
MAX_ONNX_VALUES = 2**28
"""Maximum number of values of an array within an ONNX model, for one image."""
ONNX_LOOPS = ("Loop", "Scan", "SequenceMap")
"""Operators of ONNX whose effort depends on values."""

SAFE_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter|parameter_with_state|qtensor)"
    r"|torch\.jit\._pickle \w+|torch (\w+Storage|float\w*|bfloat16|int\w+|uint8|bool|Size|device)"
    r"|torch\.storage (UntypedStorage|TypedStorage)|torch\.serialization _get_layout|__torch__[\w.]* \w+"
)
"""``module name`` of the objects that the pickles within an archive of torch may name."""

SAFE_OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!(from_file|save)\b)\w+(\.\w+)?|torch\.ops\.quantized_decomposed\.\w+(\.\w+)?"
    r"|torch\.ops\.torchvision\.(nms|(ps_)?roi_(align|pool)|deform_conv2d)(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|map_impl|scan|while_loop|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.(_sym_sqrt|sym_\w+)|math\.\w+"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|invert|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow|rshift|sub|truediv|xor)"
)
"""Operators that a program of ``torch.export`` may call. torch would call any other function by its name, and
``aten.from_file`` and ``aten.save`` write files."""

EXPRESSION_NAMES = {
    *("Symbol", "positive", "integer", "nonnegative", "True", "False", "Mod", "FloorDiv", "CeilDiv", "Max", "Min"),
    *("PythonMod", "ModularIndexing", "Where", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Abs", "Pow"),
    *("ceiling", "floor", "TruncToInt", "RoundToInt", "CeilToInt", "FloorToInt", "IntTrueDiv", "FloatTrueDiv", "oo"),
    *("int_oo", "Integer", "Float", "Rational", "Identity", "CleanDiv", "ToFloat", "PowByNatural", "FloatPow"),
}
"""Names that the text of a symbolic size may contain, beside symbols such as ``s0``; torch evaluates this text."""


def user_file(folder: Path, name: str, key: str) -> Path:
    """Path of a file of the user.

    Args:
        folder: ``classifier.folder``.
        name: path below the folder.
        key: dotted key of the parameter, for errors.

    Raises:
        ValueError: the name leads out of the folder.
        FileNotFoundError: there is no such file.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{key}: {name!r} leads out of classifier.folder. Copy the file into {folder}")
    if not (path := folder / name).is_file():
        raise FileNotFoundError(f"{key}: {path} not found. Put the file into classifier.folder")
    return path


def read_weights(path: Path, key: str) -> dict[str, Tensor]:
    """Read a state dict: safetensors, or a file of torch that holds tensors alone.

    Args:
        path: the format is detected from the content.
        key: dotted key of the parameter, for errors.

    Raises:
        ValueError: the file is damaged, holds code or other objects than tensors, or its tensors are larger than it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    def refused(why: object) -> ValueError:
        return ValueError(
            f"{key}: {path.name} is refused: {why}. Safetensors, or a state dict that torch loads with weights_only, "
            "is allowed. Save the weights with safetensors.torch.save_file(model.state_dict(), ...)"
        )

    with path.open("rb") as file:
        start = file.read(16)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise refused(error) from error
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises many types of exceptions for damaged and for hostile files
        raise refused(str(error).strip().partition("\n")[0] or type(error).__name__) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise refused("it holds other objects than a dictionary of tensors")
    for name, tensor in content.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > path.stat().st_size:
            raise refused(f"the tensor {name} has {tensor.numel()} values, more than the file")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def check_archive(file: Path | io.BytesIO) -> zipfile.ZipFile:
    """Check the members of a ZIP archive without reading them; return the archive.

    Args:
        file: path or content of the archive.

    Raises:
        ValueError: the archive is damaged, or a member has a path out of the archive, or is far larger than it.
    """
    try:
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"the archive is damaged: {error}") from error
    n_bytes = file.stat().st_size if isinstance(file, Path) else file.getbuffer().nbytes
    if sum(member.file_size for member in members) > MAX_INFLATION * n_bytes + 2**16:
        raise ValueError("the members of the archive are far larger than the archive (a ZIP bomb)")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError("the archive has two members of one name")
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or re.match(r"[A-Za-z]:", name):
            raise ValueError(f"the member {name!r} has a path out of the archive")
    return archive


def check_torchscript(path: Path) -> None:
    """Check that the pickles of a TorchScript archive name only tensors and classes of the archive.

    Raises:
        ValueError: they name other objects, or the archive is damaged.
    """
    archive = check_archive(path)
    names = archive.namelist()
    if not any("/code/" in name for name in names):
        raise ValueError("it is no TorchScript archive")
    for name in names:
        if name.endswith(".pkl"):
            _check_pickle(archive.read(name), name)


def check_program(path: Path) -> None:
    """Check that a program of ``torch.export`` holds no pickled object, no library and no text that torch would run.

    Its operators must be those of :data:`SAFE_OPERATORS`: others can read and write files.

    Raises:
        ValueError: it holds one of these, calls another operator, or is damaged.
    """
    archive = check_archive(path)
    names = archive.namelist()
    if not any(re.search(r"(^|/)models/[^/]+\.json$", name) for name in names):
        raise ValueError("it is no program of torch.export")
    for name in names:
        if "aotinductor" in name or name.endswith((".so", ".dll", ".cubin", ".cpp", ".py")):
            raise ValueError(f"the member {name!r} is compiled code")
        if name.endswith(".pt"):
            _check_nested(archive.read(name), name)
        if name.endswith(".json"):
            if archive.getinfo(name).file_size > MAX_JSON_BYTES:
                raise ValueError(f"the member {name!r} is too large")
            for key, value in _leaves(json.loads(archive.read(name))):
                if key == "use_pickle" and value:
                    raise ValueError(f"the member {name!r} refers to pickled objects")
                if key == "expr_str":
                    _check_expression(str(value))
                if key == "target" and not SAFE_OPERATORS.fullmatch(str(value)):
                    raise ValueError(f"the member {name!r} calls {str(value)[:80]!r}, which is no operator of networks")


def check_onnx(path: Path) -> Any:
    """Read an ONNX model whose external data lie in its folder; return it, with these data.

    Raises:
        ValueError: it is damaged, its external data are missing or lie elsewhere, it takes anything but one array of
            float32, or it has loops or huge values.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ValueError(f"it is no ONNX model: {error}") from error
    try:
        # refuses paths, links and sizes that lead out of the folder or the file
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except Exception as error:
        raise ValueError(f"it is no valid ONNX model: {str(error).strip().partition(chr(10))[0]}") from error
    _check_onnx_inputs(model)
    _check_onnx_effort(model)
    return model


def _check_onnx_inputs(model: Any) -> None:
    """Check that an ONNX model takes one array of float32.

    Raises:
        ValueError: it takes another input, or several.
    """
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    types = {value.name: value.type.tensor_type.elem_type for value in inputs}
    if list(types.values()) != [onnx.TensorProto.FLOAT]:
        found = ", ".join(
            f"{name} ({onnx.TensorProto.DataType.Name(number).lower()})" for name, number in types.items()
        )
        raise ValueError(f"it has the inputs {found or 'none'}. One input of the type float (32 bits) is allowed")


def _check_onnx_effort(model: Any) -> None:
    """Check that an ONNX model has no loops and no huge values, without running it.

    Raises:
        ValueError: it has a loop or a huge value.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    waiting = [inferred.graph, *inferred.functions]
    while waiting:
        graph = waiting.pop()
        for node in graph.node:
            if node.op_type in ONNX_LOOPS:
                raise ValueError(f"it has the operator {node.op_type}. Networks without loops are allowed")
            waiting += [each for attribute in node.attribute for each in (attribute.g, *attribute.graphs) if each.node]
        if isinstance(graph, onnx.GraphProto):
            for value in (*graph.value_info, *graph.output):
                sizes = [size.dim_value for size in value.type.tensor_type.shape.dim if size.HasField("dim_value")]
                if math.prod(sizes) > MAX_ONNX_VALUES:
                    raise ValueError(
                        f"{value.name} has the shape {sizes}. At most {MAX_ONNX_VALUES} values are allowed"
                    )


def _check_pickle(content: bytes, name: str) -> None:
    """Check that a pickle names only objects of :data:`SAFE_GLOBALS`.

    torch writes names with one opcode (GLOBAL); the other opcodes for names occur in no archive of torch.

    Raises:
        ValueError: it names another object, or one whose name it computes.
    """
    try:
        for opcode, argument, _position in pickletools.genops(content):
            if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                raise ValueError(f"the pickle {name!r} computes names of objects")
            if opcode.name == "GLOBAL" and not SAFE_GLOBALS.fullmatch(str(argument)):
                raise ValueError(f"the pickle {name!r} would run {argument!r}")
    except ValueError as error:
        raise ValueError(f"{error}. Save the model with torch.jit.save") from error
    except Exception as error:
        raise ValueError(f"the pickle {name!r} is damaged: {error}") from error


def _check_nested(content: bytes, name: str) -> None:
    """Check a file of torch within an archive, which torch would unpickle; ``weights_only`` refuses code."""
    if not content:
        return
    if zipfile.is_zipfile(file := io.BytesIO(content)):
        check_archive(file)
    file.seek(0)
    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"the member {name!r} holds code or is damaged") from error


def _check_expression(text: str) -> None:
    """Check the text of a symbolic size, which torch evaluates.

    Raises:
        ValueError: it is no arithmetic.
    """
    names = re.findall(r"[A-Za-z_]\w*", text)
    unknown = [word for word in names if word not in EXPRESSION_NAMES and not re.fullmatch(r"[su]\d+", word)]
    if unknown or not re.fullmatch(r"[\w\s'()+\-*/,.=<>]*", text) or re.search(r"\.\s*[A-Za-z_]", text):
        raise ValueError(f"the symbolic size {text[:60]!r} is no arithmetic")


def _leaves(values: Any) -> Iterator[tuple[str, Any]]:
    """Pairs of key and value at the leaves of nested dictionaries and lists."""
    waiting = [("", values)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += list(value.items())
        elif isinstance(value, list):
            waiting += [(name, child) for child in value]
        else:
            yield name, value
