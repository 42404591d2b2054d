# Flags that every target of this project shares. Instruction sets are chosen at run time (Highway), never here.
add_library(kvcodec_options INTERFACE)
target_compile_options(kvcodec_options INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wno-unused-function)
if(KVCODEC_WERROR)
    target_compile_options(kvcodec_options INTERFACE -Werror)
endif()
if(KVCODEC_SANITIZE)
    target_compile_options(kvcodec_options INTERFACE -fsanitize=${KVCODEC_SANITIZE} -fno-sanitize-recover=all
                                                     -fno-omit-frame-pointer)
    # GCC sees uninitialised values in std::regex where the address sanitizer has rewritten it.
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        target_compile_options(kvcodec_options INTERFACE -Wno-maybe-uninitialized)
    endif()
    target_link_options(kvcodec_options INTERFACE -fsanitize=${KVCODEC_SANITIZE})
endif()
if(KVCODEC_BUILD_FUZZ)
    target_compile_options(kvcodec_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# Highway compiles each kernel for every instruction set above this baseline (SSE4.2, 2009) and picks one at run time.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|amd64|AMD64")
    target_compile_options(kvcodec_options INTERFACE -march=x86-64-v2)
endif()
# Scalable vectors cannot be kept in arrays or captured by lambdas: ARM machines with SVE run the NEON code.
target_compile_definitions(kvcodec_options INTERFACE
    HWY_DISABLE_PCLMUL_AES "HWY_DISABLED_TARGETS=(HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128|HWY_RVV)")
