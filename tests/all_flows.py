"""Every flow of the project, found where it lies."""

import importlib
import pkgutil
from typing import Any

from prefect import Flow

import flows


def all_flows() -> dict[str, Flow[..., Any]]:
    """By name; those that a module defines, not those that it imports."""
    modules = [importlib.import_module(f"flows.{module.name}") for module in pkgutil.iter_modules(flows.__path__)]
    return {
        flow.name: flow
        for module in modules
        for flow in vars(module).values()
        if isinstance(flow, Flow) and flow.fn.__module__ == module.__name__
    }
