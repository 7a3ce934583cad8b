#!/bin/sh
# Run a command as on a processor that has AVX2 and nothing newer: scripts/capped.sh COMMAND ...
#
# Capped: oneDNN (ONEDNN_MAX_CPU_ISA), torch's own kernels (ATEN_CPU_CAPABILITY), MKL and OpenBLAS, and C code that we
# compile (ATHENA_MARCH). Not capped, since they cannot be told: numpy's loops, ONNX Runtime, OpenVINO, MuJoCo,
# bitsandbytes and FFmpeg.
case "$(uname -m)" in
  x86_64 | amd64) ;;
  *) echo "capped.sh: this machine ($(uname -m)) has no AVX to cap, so '$*' is not run again"; exit 0 ;;
esac
echo "== as on AVX2 (not capped: numpy, ONNX Runtime, OpenVINO, MuJoCo, bitsandbytes, FFmpeg): $*"
export ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell
export ATHENA_MARCH=haswell
exec "$@"
