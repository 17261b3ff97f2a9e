// One CUDA device that does not exist, for fake tensors: nothing can run on it. Loaded before PyTorch, these functions
// take the place of its own, as c10/cuda/CUDAFunctions.h and CUDAStream.h declare them, and of the driver's libcuda.so.1.
#include <cstdint>
#include <optional>

namespace c10::cuda {
using DeviceIndex = int8_t;
struct CUDAStream {
    int8_t device_type;
    DeviceIndex device;
    int64_t id;
};
const CUDAStream the_default{1, 0, 0};  // 1: DeviceType::CUDA

DeviceIndex device_count() noexcept { return 1; }
DeviceIndex device_count_ensure_non_zero() { return 1; }
DeviceIndex current_device() { return 0; }
void set_device(DeviceIndex, const bool) {}
int GetDeviceCount(int* count) { *count = 1; return 0; }
int GetDevice(DeviceIndex* device) { *device = 0; return 0; }
int SetDevice(DeviceIndex, const bool) { return 0; }
int MaybeSetDevice(DeviceIndex) { return 0; }
DeviceIndex ExchangeDevice(DeviceIndex) { return 0; }
DeviceIndex MaybeExchangeDevice(DeviceIndex) { return 0; }
void SetTargetDevice() {}
bool hasPrimaryContext(DeviceIndex) { return false; }
std::optional<DeviceIndex> getDeviceIndexWithPrimaryContext() { return std::nullopt; }
void device_synchronize() {}
CUDAStream getDefaultCUDAStream(DeviceIndex) { return the_default; }
CUDAStream getCurrentCUDAStream(DeviceIndex) { return the_default; }
void setCurrentCUDAStream(CUDAStream) {}
}

extern "C" int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { *flags = *active = 0; return 0; }
