"""Read what a `_target_` takes from its source, without importing it.

A method's module imports torch; planning a sweep must not. So the class, its first docstring line, its
literal class attributes and its frozen dataclass of hyper-parameters are taken from the syntax tree, and only
the dataclass is executed: it may use the standard library, pydantic and other such dataclasses, nothing else.
"""

import ast
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from runners.errors import UserError, nearest

# What the source of a hyper-parameter dataclass may import.
_LIGHT = frozenset(sys.stdlib_module_names) | {"pydantic", "annotated_types"}


@dataclass(frozen=True)
class Target:
    """What the source says of the class that a `_target_` names."""

    path: str
    doc: str  # first line of its docstring, or of its module's
    config: type | None  # dataclass of its hyper-parameters, where its `config` attribute is annotated with one
    parameters: dict[str, Any] | None  # else: keyword parameters of its __init__, by type (None: it takes any)
    attributes: dict[str, Any]  # literal class attributes, its bases' included


def read(path: str) -> Target:
    """Read the target at a dotted path, e.g. `methods.finetune.flow.Flow`.

    Raises:
        UserError: no such module or class.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"_target_={path}: must be a dotted path to a class")
    found, class_ = _find(module, name)
    doc = ast.get_docstring(class_) or ast.get_docstring(_tree(found)) or ""
    config = _config_type(found, class_)
    parameters = _init_parameters(found, class_) if config is None else {}
    return Target(path, doc.strip().splitlines()[0] if doc else "", config, parameters, _attributes(found, class_))


def imported_modules(module: str) -> list[str]:
    """Dotted names of the modules that a module of ours imports anywhere in its source."""
    return _imports(module, _tree(module))


@lru_cache(maxsize=512)  # by the tree, which is another one once the source has been read again
def _imports(module: str, tree: ast.Module) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            names += [source, *(f"{source}.{alias.name}" for alias in node.names)]
    return names


@lru_cache(maxsize=512)
def module_path(module: str) -> Path | None:
    """The source file of a module, found without importing it or its packages; None when there is none."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for root in spec.submodule_search_locations or []:
        base = Path(root).joinpath(*rest)
        for candidate in (base.with_name(base.name + ".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


@lru_cache(maxsize=512)
def _tree(module: str) -> ast.Module:
    path = module_path(module)
    if path is None:
        raise UserError(f"_target_={module}: no such module")
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _find(module: str, name: str) -> tuple[str, ast.ClassDef]:
    """The class and the module that defines it, following re-exports (`torch.optim.AdamW`)."""
    tree = _tree(module)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name in classes:
        return module, classes[name]
    source = _imported_from(module, tree, name)
    if source is not None:
        return _find(*source)
    raise UserError(f"_target_={module}.{name}: the module has no such class{nearest(name, classes)}")


def _imported_from(module: str, tree: ast.Module, name: str) -> tuple[str, str] | None:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _absolute(module, node), alias.name
    return None


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    path = module_path(module)
    package = module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _bases(module: str, class_: ast.ClassDef) -> list[tuple[str, ast.ClassDef]]:
    """The base classes whose source can be read, nearest first."""
    found = []
    for base in class_.bases:
        if isinstance(base, ast.Name):
            try:
                found.append(_find(module, base.id))
            except UserError:
                continue  # a builtin, or a name made in a way we do not follow
    return found


def _attributes(module: str, class_: ast.ClassDef) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for base in reversed(_bases(module, class_)):
        values |= _attributes(*base)
    for node in class_.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            name, value = node.target.id, node.value
        else:
            continue
        try:
            values[name] = ast.literal_eval(value)
        except ValueError:
            continue  # not a literal: only the running class knows it
    return values


def _config_type(module: str, class_: ast.ClassDef) -> type | None:
    for node in class_.body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == "config"
            and isinstance(node.annotation, ast.Name)
        ):
            return _dataclass(module, node.annotation.id)
    for base in _bases(module, class_):
        found = _config_type(*base)
        if found is not None:
            return found
    return None


@lru_cache(maxsize=512)
def _dataclass(module: str, name: str) -> type:
    """Execute one dataclass of a module, in a namespace of light imports, constants and its base dataclasses."""
    module, class_ = _find(module, name)
    tree = _tree(module)
    constants = [(_assigned(node), node) for node in tree.body]
    wanted = _names(class_)
    for assigned, node in reversed(constants):  # what a constant is made of is needed too
        if assigned & wanted:
            wanted |= _names(node)
    body: list[ast.stmt] = []
    namespace: dict[str, Any] = {"__name__": f"{module}:{name}"}
    for node in tree.body:
        if isinstance(node, ast.Import) and all(alias.name.split(".")[0] in _LIGHT for alias in node.names):
            body.append(node)
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            source = _absolute(module, node)
            if node.level == 0 and source.split(".")[0] in _LIGHT:
                body.append(node)
                continue
            for alias in node.names:
                if (alias.asname or alias.name) in wanted:
                    namespace[alias.asname or alias.name] = _dataclass(source, alias.name)
        elif isinstance(node, ast.ClassDef) and node is not class_ and node.name in wanted:
            namespace[node.name] = _dataclass(module, node.name)
        elif _assigned(node) & wanted:
            body.append(node)
    code = compile(ast.Module([*body, class_], []), str(module_path(module)), "exec", dont_inherit=True)
    # The dataclass machinery looks its module up by name; this one exists only while it is read.
    exec(code, namespace)
    built = namespace[name]
    if not inspect.isclass(built):
        raise UserError(f"_target_={module}.{name}: must be a dataclass")
    return built


def _assigned(node: ast.stmt) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _init_parameters(module: str, class_: ast.ClassDef) -> dict[str, Any] | None:
    """What __init__ takes besides self, by type; None when it takes **kwargs."""
    for node in class_.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = node.args
            if arguments.kwarg:
                return None
            named = [*arguments.posonlyargs, *arguments.args][1:] + arguments.kwonlyargs
            return {argument.arg: _plain_type(argument.annotation) for argument in named}
    for base in _bases(module, class_):
        return _init_parameters(*base)
    return {}


_PLAIN = {"bool": bool, "float": float, "int": int, "str": str, "dict": dict, "list": list, "tuple": tuple}


def _plain_type(annotation: ast.expr | None) -> Any:
    """The type that an annotation names; whatever is not built in (`Tensor`) may be anything."""

    class Loosen(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.Name:
            return node if node.id in _PLAIN else ast.Name("Any", ast.Load())

        def visit_Attribute(self, _: ast.Attribute) -> ast.Name:
            return ast.Name("Any", ast.Load())

    if annotation is None or isinstance(annotation, ast.Constant):
        return Any
    loose = ast.fix_missing_locations(
        ast.Expression(Loosen().visit(ast.parse(ast.unparse(annotation), mode="eval").body))
    )
    try:
        return eval(compile(loose, "annotation", "eval"), {**_PLAIN, "Any": Any})
    except TypeError:
        return Any  # a generic of somebody else: its name is gone


def config_class(class_: type) -> type:
    """The hyper-parameter dataclass of a method's running class (the annotation of its `config`)."""
    for base in class_.__mro__:
        annotation = inspect.get_annotations(base).get("config")
        if annotation is not None:
            built = vars(sys.modules[base.__module__])[annotation] if isinstance(annotation, str) else annotation
            if inspect.isclass(built):
                return built
    raise UserError(f"_target_={class_.__module__}.{class_.__name__}: must annotate `config` with its dataclass")
