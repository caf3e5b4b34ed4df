"""Checks of model files from elsewhere, before a library reads them.

No function here runs code of a file. Weights are read as safetensors, or by torch with ``weights_only``.
"""

import io
import json
import keyword
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
    r"torch\.ops\.aten\.(?!(from_file|save)\b)((?!__)\w+|__i?(and|or|xor|lshift|rshift)__)\.(?!_)\w+"
    r"|torch\.ops\.quantized_decomposed\.(?!_)\w+\.(?!_)\w+"
    r"|torch\.ops\.torchvision\.(nms|(ps_)?roi_(align|pool)|deform_conv2d)\.(?!_)\w+"
    r"|torch\.ops\.higher_order\.(cond|map_impl|scan|while_loop|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.(_sym_sqrt|sym_\w+)|math\.(?!_)\w+"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|invert|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow|rshift|sub|truediv|xor)"
)
"""Operators that a program of ``torch.export`` may call. torch would call any other function by its name, also methods
such as ``__getattribute__``, and ``aten.from_file`` and ``aten.save`` write files."""

PROGRAM_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(model_weights_config\.json|weight_\d+)|data/constants/(model_constants_config\.json|tensor_\d+)"
)
"""Members of a program of ``torch.export`` that are read, below the folder of the archive."""
PROGRAM_EXAMPLE = "data/sample_inputs/model.pt"
"""Example of the input, a pickle; torch needs the member, which may be empty."""
UNREAD_MEMBERS = re.compile(rf"{re.escape(PROGRAM_EXAMPLE)}|extra/.*")

PROGRAM_TEXT = re.compile(r"(?!__)(?:(?!\.__)[\w.,:;@\[\]<>+\- ])*")
"""Names, paths and types in a program. torch writes some of them into source code, which it runs."""
PYTREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
"""Containers of inputs and outputs. The description of others names modules that torch imports."""

EXPRESSION_NAMES = {
    *("Symbol", "positive", "integer", "nonnegative", "True", "False", "Mod", "FloorDiv", "CeilDiv", "Max", "Min"),
    *("PythonMod", "ModularIndexing", "Where", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Abs", "Add"),
    *("ceiling", "floor", "TruncToInt", "RoundToInt", "CeilToInt", "FloorToInt", "IntTrueDiv", "FloatTrueDiv", "oo"),
    *("int_oo", "Integer", "Float", "Rational", "Identity", "CleanDiv", "ToFloat", "Mul"),
}
"""Names that the text of a symbolic size may contain, beside symbols such as ``s0``; torch evaluates this text.
There are no powers, which can be too large to compute."""
MAX_EXPRESSION = 2000
"""Maximum number of characters of a symbolic size."""


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
    # torch reads a member whatever the case of its name
    if len({name.casefold() for name in names}) < len(names):
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


def read_program(path: Path) -> io.BytesIO:
    """Copy a program of ``torch.export`` without its example, after a check that torch finds no code in it.

    torch unpickles the example, constants that are no tensors, and weights that are marked as pickles; it imports
    modules that the containers of inputs and outputs name; and it runs source code in which it writes the names of
    values. The copy has only members and texts that were checked, so that torch cannot read the archive in another way.

    Returns:
        An archive for ``torch.export.load``.

    Raises:
        ValueError: the program holds code, calls an operator that is not one of :data:`SAFE_OPERATORS`, or is damaged.
    """
    archive = check_archive(path)
    names = {name.partition("/")[2]: name for name in archive.namelist()}
    if "models/model.json" not in names or len({name.partition("/")[0] for name in archive.namelist()}) > 1:
        raise ValueError("it is no program of torch.export")
    with zipfile.ZipFile(copy := io.BytesIO(), "w") as checked:
        for name, member in names.items():
            if UNREAD_MEMBERS.fullmatch(name):
                continue
            if not PROGRAM_MEMBERS.fullmatch(name):
                raise ValueError(f"the member {member!r} is no part of a program of tensors and operators")
            if not name.endswith(".json"):
                checked.writestr(f"archive/{name}", archive.read(member))
                continue
            if archive.getinfo(member).file_size > MAX_JSON_BYTES:
                raise ValueError(f"the member {member!r} is too large")
            content = _without_remarks(json.loads(archive.read(member)))
            for key, value in _texts(content):
                _check_program_text(key, value)
            checked.writestr(f"archive/{name}", json.dumps(content))
        checked.writestr(f"archive/{PROGRAM_EXAMPLE}", b"")
    copy.seek(0)
    return copy


def check_onnx(path: Path) -> Any:
    """Read an ONNX model whose external data lie in its folder; return it, with these data and new names of its nodes.

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
    _rename_nodes(model)
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
    for graph in _onnx_graphs(inferred):
        for node in graph.node:
            if node.op_type in ONNX_LOOPS:
                raise ValueError(f"it has the operator {node.op_type}. Networks without loops are allowed")
        if isinstance(graph, onnx.GraphProto):
            for value in (*graph.value_info, *graph.output):
                sizes = [size.dim_value for size in value.type.tensor_type.shape.dim if size.HasField("dim_value")]
                if math.prod(sizes) > MAX_ONNX_VALUES:
                    raise ValueError(
                        f"{value.name} has the shape {sizes}. At most {MAX_ONNX_VALUES} values are allowed"
                    )


def _rename_nodes(model: Any) -> None:
    """Number the nodes of an ONNX model: onnx2torch writes their names into source code, which it runs.

    Names of inputs, values and weights do not get there, and a domain or an operator that it does not know is refused.
    """
    for number, node in enumerate(node for graph in _onnx_graphs(model) for node in graph.node):
        node.name = f"node_{number}"


def _onnx_graphs(model: Any) -> Iterator[Any]:
    """The graph and the functions of an ONNX model, and the graphs within their nodes."""
    waiting = [model.graph, *model.functions]
    while waiting:
        yield (graph := waiting.pop())
        for node in graph.node:
            waiting += [each for attribute in node.attribute for each in (attribute.g, *attribute.graphs) if each.node]


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


def _without_remarks(content: Any) -> Any:
    """Copy a description of a program without the origin of its operators and the code of its guards."""
    if isinstance(content, list):
        return [_without_remarks(value) for value in content]
    if not isinstance(content, dict):
        return content
    kept = {key: _without_remarks(value) for key, value in content.items() if key not in ("guards_code", "metadata")}
    metadata = content.get("metadata")
    if isinstance(metadata, dict):
        kept["metadata"] = {key: metadata[key] for key in ("nn_module_stack",) if key in metadata}
    return kept


def _check_program_text(key: str, value: Any) -> None:
    """Check a text in the description of a program.

    Args:
        key: its key; empty if the text is a key itself.
        value: the text; or the value of ``use_pickle``.

    Raises:
        ValueError: torch could run it, or unpickle what it refers to.
    """
    match key:
        case "use_pickle":
            allowed = not value
        case "expr_str":
            allowed = _is_arithmetic(value)
        case "target" | "as_operator":
            allowed = SAFE_OPERATORS.fullmatch(value) is not None
        case "in_spec" | "out_spec":
            allowed = all(map(_is_plain_container, json.loads(value)[1:]))
        case "name" | "as_name" | "forward_arg_names":
            # names of variables in the source code
            allowed = not value or (value.isidentifier() and not keyword.iskeyword(value))
        case "path_name":
            allowed = re.fullmatch(r"(weight|tensor)_\d+", value) is not None
        case "as_string":
            # an argument, quoted in the source code
            allowed = True
        case _:
            # the keys of range_constraints are symbols, up to whose number torch counts
            allowed = PROGRAM_TEXT.fullmatch(value) is not None and not re.fullmatch(r"z?[a-z]+\d{5,}", value)
    if not allowed:
        raise ValueError(
            f"{key or 'the key'} {str(value)[:80]!r} in it is not that of a program of tensors and operators"
        )


def _is_plain_container(spec: Any) -> bool:
    """Return whether the description of inputs or outputs has only tuples, lists and dictionaries with simple keys."""
    keys = [] if spec["context"] is None else json.loads(spec["context"])
    return (
        spec["type"] in PYTREE_TYPES
        and (keys is None or (isinstance(keys, list) and all(isinstance(key, str | int) for key in keys)))
        and all(map(_is_plain_container, spec["children_spec"]))
    )


def _is_arithmetic(text: str) -> bool:
    """Return whether the text of a symbolic size, which torch evaluates, is arithmetic without powers."""
    symbol = r"Symbol\('[su]\d{1,4}'(, *(positive|integer|nonnegative)=True)*\)"
    plain = re.sub(symbol, "s0", text)
    names = re.findall(r"[A-Za-z_]\w*", plain)
    return (
        len(text) <= MAX_EXPRESSION
        and all(word in EXPRESSION_NAMES or re.fullmatch(r"[su]\d{1,4}", word) for word in names)
        and re.fullmatch(r"[\w\s()+\-*/,.=<>]*", plain) is not None
        and not re.search(r"\*\*|\.\s*[A-Za-z_]|\d{12}", plain)
    )


def _texts(values: Any) -> Iterator[tuple[str, Any]]:
    """Pairs of key and text in nested dictionaries and lists, with ``use_pickle``. A key itself has an empty key."""
    waiting = [("", values)]
    while waiting:
        name, value = waiting.pop()
        if name == "use_pickle" or isinstance(value, str):
            yield name, value
        elif isinstance(value, dict):
            waiting += [("", key) for key in value]
            waiting += list(value.items())
        elif isinstance(value, list):
            waiting += [(name, child) for child in value]
