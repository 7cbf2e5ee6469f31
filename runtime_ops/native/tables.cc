#include "kernel_types.h"

namespace onnxq {

constexpr Table kTables[] = {make_table(2), make_table(3), make_table(4), make_table(5),
                             make_table(6), make_table(7), make_table(8)};

constexpr Table kWindowTables[] = {make_window_table(2), make_window_table(3), make_window_table(4),
                                   make_window_table(5)};

}  // namespace onnxq
