"""What people write, checked: policies, manifests and settings, from text to the values of `model` and `settings`.

The front door of the package, and the only home of pydantic, yaml and publicsuffixlist. Any text gives a value or
problems with line and column (`SettingsError` for settings); anything else is a bug.
"""

from __future__ import annotations

from typing import Final

import pydantic
import yaml

from egressd.schema.config import load_settings, read_settings, resolvers_of, stated_settings
from egressd.schema.document import json_schema
from egressd.schema.manifest import (
    POLICY_LABEL,
    BarePolicy,
    ConfigMapObject,
    Manifest,
    NamespaceObject,
    bare_policy,
    check_configmap,
    policies_of,
    policy_name,
    read_manifests,
)
from egressd.schema.pod import PodObject, workload_of
from egressd.schema.policy import read_policy
from egressd.schema.problem import Origin, Problem, SettingsError, has_errors
from egressd.schema.tree import yaml_text
from egressd.schema.words import read_address, read_block

__all__ = [
    "POLICY_LABEL",
    "READ_WITH",
    "BarePolicy",
    "ConfigMapObject",
    "Manifest",
    "NamespaceObject",
    "Origin",
    "PodObject",
    "Problem",
    "SettingsError",
    "bare_policy",
    "check_configmap",
    "has_errors",
    "json_schema",
    "load_settings",
    "policies_of",
    "policy_name",
    "read_address",
    "read_block",
    "read_manifests",
    "read_policy",
    "read_settings",
    "resolvers_of",
    "stated_settings",
    "workload_of",
    "yaml_text",
]

READ_WITH: Final = f"pydantic {pydantic.VERSION}, yaml {yaml.__version__}"
"""The libraries that what a text means may depend on."""
