"""All flows of the project, found in the modules of ``flows/``."""

import importlib
import pkgutil
from typing import Any

from prefect import Flow

import flows


def all_flows() -> dict[str, Flow[..., Any]]:
    """Flows by name, each from the module that defines it."""
    modules = [importlib.import_module(f"flows.{module.name}") for module in pkgutil.iter_modules(flows.__path__)]
    return {
        flow.name: flow
        for module in modules
        for flow in vars(module).values()
        if isinstance(flow, Flow) and flow.fn.__module__ == module.__name__
    }
