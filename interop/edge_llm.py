"""A 4-bit decoder of ours through TensorRT Edge-LLM's own exporter, on the CPU: part of `make interop`.

The exporter's pins (torch, transformers, onnx) exclude the package's own, hence an environment of its own. It makes the
graphs; engines are built on a device, and none was ever built or run by us.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = "tensorrt-edgellm[export]==0.11.0"
ROWS = 257  # 256 action tokens and the end of the answer


def environment(folder: Path) -> Path:
    """The exporter's command in an environment of its own; made where it does not exist yet."""
    command = folder / "bin" / "tensorrt-edgellm-export"
    if not command.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", PACKAGE], check=True)
    return command


def checkpoint(folder: Path) -> tuple[Path, int]:
    """A small quantised policy of the token family as a compressed checkpoint, and its number of decoder layers."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import small_bundles
    from athena_vla import embodiment
    from athena_vla.export import ExportConfig, export
    from athena_vla.quantize import QuantizeConfig, quantize

    # The attention kernels over there take heads of 64 or 128.
    small_bundles.BODY |= {"width": 256, "mlp_width": 512, "heads": 2, "kv_heads": 2}
    base = small_bundles.write_base(folder / "base", embodiment.load("toy"), tokens=True)
    quantize(QuantizeConfig(base.path, folder / "int4", method="nearest", sensitivity=False))
    export(ExportConfig(folder / "int4", folder / "checkpoint", target="edge-llm"))
    return folder / "checkpoint", base.spec.body.text.layers  # pyright: ignore[reportAttributeAccessIssue]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", type=Path, default=HERE.parent / ".venv-edge-llm")
    command = environment(parser.parse_args().environment)
    with tempfile.TemporaryDirectory() as work:
        source, layers = checkpoint(Path(work))
        out = Path(work) / "out"
        words = [str(command), str(source), str(out), "--reduced-vocab-dir", str(source / "reduced_vocab")]
        surroundings = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(words, capture_output=True, text=True, env=surroundings, check=False)
        if done.returncode:
            sys.exit(f"tensorrt-edgellm-export failed:\n{(done.stdout + done.stderr)[-3000:]}")
        import onnx

        (file,) = out.rglob("model.onnx")
        model = onnx.load(str(file), load_external_data=False)
        kinds: dict[str, int] = {}
        for node in model.graph.node:
            kinds[node.op_type] = kinds.get(node.op_type, 0) + 1
        logits = next(o for o in model.graph.output if o.name == "logits")
        rows = logits.type.tensor_type.shape.dim[-1].dim_value
        packed = sum(n for kind, n in kinds.items() if kind.startswith("Int4Groupwise"))
        assert rows == ROWS, f"logits have {rows} rows"
        assert 4 * layers <= packed <= 7 * layers, f"{packed} 4-bit layers for {layers} decoder layers: {kinds}"
        print(f"tensorrt-edgellm-export took the checkpoint: {json.dumps({'logits': rows, 'operators': kinds})}")


if __name__ == "__main__":
    main()
