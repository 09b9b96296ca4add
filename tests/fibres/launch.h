// The kernels by name, called as cuLaunchKernel calls them: an array of pointers to arguments.
#include <map>
#include <string>
#include <tuple>

namespace fibres {

template <class... Args, size_t... I>
void call(void (*kernel)(Args...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<Args*>(args[I])...);
}

template <class... Args>
std::function<void(void**)> by_pointers(void (*kernel)(Args...)) {
    return [kernel](void** args) { call(kernel, args, std::index_sequence_for<Args...>()); };
}

template <class... Args>
int arguments(void (*)(Args...)) {
    return sizeof...(Args);
}

struct Kernel {
    std::function<void(void**)> call;
    int arguments;
};

extern const std::map<std::string, Kernel> kernels;

}  // namespace fibres

// Returns an Outcome.
extern "C" int launch(const char* name, unsigned grid_x, unsigned grid_y, unsigned threads, size_t shared_bytes,
                      unsigned order, unsigned left_out, int count, void** args) {
    const auto found = fibres::kernels.find(name);
    if (found == fibres::kernels.end()) return fibres::NO_SUCH_KERNEL;
    if (found->second.arguments != count) return fibres::OTHER_ARGUMENTS;
    fibres::left_out = left_out;
    return fibres::launch({grid_x, grid_y}, threads, shared_bytes, order, [&] { found->second.call(args); });
}
