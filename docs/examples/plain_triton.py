"""Energy, forces and stress from a Forcegate service with NVIDIA's tritonclient alone: pip install numpy tritonclient[grpc]"""

import sys

import numpy as np
import tritonclient.grpc as triton

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"
structure = {  # one structure of two atoms: [1, 2], [1, 2, 3], ...; to send several of any size, pad with atomic number 0
    "numbers": np.array([[11, 17]], dtype=np.int32),
    "positions": np.array([[[0.0, 0.0, 0.0], [2.82, 0.0, 0.0]]]),  # A
    "cell": np.array([[[0.0, 2.82, 2.82], [2.82, 0.0, 2.82], [2.82, 2.82, 0.0]]]),  # A, lattice vectors as rows
    "pbc": np.array([[True, True, True]]),
    "charge": np.zeros((1, 1)),  # e
    "spin": np.zeros((1, 1), dtype=np.int32),  # 2S+1; 0: the lowest that the electrons allow
}
inputs = []
for name, array in structure.items():
    inputs.append(triton.InferInput(name, array.shape, {"f": "FP64", "i": "INT32", "b": "BOOL"}[array.dtype.kind]))
    inputs[-1].set_data_from_numpy(array)
outputs = [triton.InferRequestedOutput(name) for name in ("energy", "forces", "stress")]
answer = triton.InferenceServerClient(address).infer("sevennet-0", inputs, outputs=outputs, client_timeout=60)
print("energy", answer.as_numpy("energy")[0, 0], "eV")
print("forces", answer.as_numpy("forces")[0], "eV/A")
print("stress", answer.as_numpy("stress")[0], "eV/A^3, xx yy zz yz xz xy, NaN unless periodic in all three directions")
