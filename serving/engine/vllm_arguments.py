"""vLLM's reading of its arguments: those that Mayfly sets, and the flags that the user passes on.

This imports vLLM, which takes seconds and half a gigabyte. It runs in the engine's replica, and,
for a server whose settings name something that vLLM may refuse, in a process of its own before
anything is started.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from serving.engine.config import EngineConfig
from serving.engine.vllm_flags import parse
from serving.engine.vllm_options import set_cpu_environment, set_vllm_environment, vllm_arguments
from serving.errors import StartError


def check_arguments(config: EngineConfig) -> None:
    """Check the arguments as `read_arguments` does, unless this machine lacks the device that
    vLLM's parser asks for, as a cluster's head may: then the engine's replica checks them.

    Raises:
        StartError: vLLM refuses a setting or a flag.
    """
    set_vllm_environment()
    from vllm.platforms import current_platform

    if not current_platform.is_unspecified():
        read_arguments(config)


def read_arguments(config: EngineConfig) -> tuple[Any, Any]:
    """The arguments of vLLM's server for a configuration, and those of its engine among them.

    No file of the model is read.

    Returns:
        vLLM's `Namespace` and its `AsyncEngineArgs`.

    Raises:
        StartError: vLLM refuses a setting or a flag.
    """
    set_vllm_environment()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.platforms import current_platform
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    on_cpu = current_platform.is_cpu()
    if on_cpu:
        set_cpu_environment()
    parser = make_arg_parser(FlexibleArgumentParser())
    arguments = parse(parser, vllm_arguments(config, on_cpu), config.vllm_flags)
    try:
        # vLLM's own server does these before it loads the model.
        validate_parsed_serve_args(arguments)
        if arguments.tool_parser_plugin:
            ToolParserManager.import_tool_parser(arguments.tool_parser_plugin)
        if arguments.reasoning_parser_plugin:
            ReasoningParserManager.import_reasoning_parser(arguments.reasoning_parser_plugin)
        validate_api_server_args(arguments)
        if arguments.reasoning_parser:
            ReasoningParserManager.get_reasoning_parser(arguments.reasoning_parser)
        return arguments, AsyncEngineArgs.from_cli_args(arguments)
    # vLLM raises errors of many types.
    except Exception as problem:
        raise StartError(f"vLLM refuses a setting or a flag: {reason(problem)}") from problem


def reason(problem: Exception) -> str:
    """The message of an error of vLLM in one line, without what pydantic adds to it."""
    if isinstance(problem, ValidationError):
        messages = (each["msg"].removeprefix("Value error, ") for each in problem.errors())
        return "; ".join(message.rstrip(".") for message in messages)
    # The text of a KeyError would be in quotes.
    message = problem.args[0] if isinstance(problem, KeyError) and problem.args else problem
    return " ".join(str(message).split())
