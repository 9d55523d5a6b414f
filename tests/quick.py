"""Flags for XLA on a CPU, with which programs are compiled quickly and run slowly; run, it prints them."""

import jaxlib

# Passes that make programs faster, or say how, and cost a tenth of the compilation. None of them changes a number.
_PASSES = (
    "while-loop-invariant-code-motion",
    "simplify-while-loops",
    "simplify-conditional",
    "cpu-parallel-task-assigner",
    "while-loop-trip-count-annotator",
)

# In one part: tests keep all cores busy already, and parts cost a tenth more.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
FLAGS += f" --xla_disable_hlo_passes={','.join(_PASSES)}"
if tuple(map(int, jaxlib.__version__.split(".")[:2])) <= (0, 10):  # an unknown flag ends the process
    FLAGS += " --xla_cpu_use_fusion_emitters=false"  # the quicker code generator, where there still are two

if __name__ == "__main__":
    print(FLAGS)
