// Marks the few symbols that leave the library; all others are hidden.
#pragma once

#if defined(_WIN32)
#define ONNXQ_EXPORT extern "C" __declspec(dllexport)
#else
#define ONNXQ_EXPORT extern "C" __attribute__((visibility("default")))
#endif
