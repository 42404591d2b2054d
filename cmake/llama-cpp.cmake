# The llama.cpp that this build is for: headers from its source tree, shared libraries from its build tree.
foreach(header ggml/include/ggml-backend.h ggml/src/ggml-backend-impl.h include/llama.h)
    if(NOT EXISTS "${KVCODEC_LLAMA_SRC}/${header}")
        message(FATAL_ERROR "${KVCODEC_LLAMA_SRC} is not a llama.cpp source tree: ${header} is missing")
    endif()
endforeach()

function(kvcodec_import_host_library name)
    find_library(KVCODEC_HOST_${name} ${name} NO_DEFAULT_PATH NO_CACHE
                 PATHS "${KVCODEC_LLAMA_BUILD}" "${KVCODEC_LLAMA_SRC}/build"
                 PATH_SUFFIXES bin lib ggml/src src)
    if(NOT KVCODEC_HOST_${name})
        message(FATAL_ERROR "lib${name}.so not found in ${KVCODEC_LLAMA_BUILD} or ${KVCODEC_LLAMA_SRC}/build; "
                            "build llama.cpp with -DBUILD_SHARED_LIBS=ON and pass LLAMA_BUILD= if it lies elsewhere")
    endif()
    add_library(host::${name} SHARED IMPORTED GLOBAL)
    set_target_properties(host::${name} PROPERTIES
        IMPORTED_LOCATION "${KVCODEC_HOST_${name}}"
        INTERFACE_INCLUDE_DIRECTORIES "${KVCODEC_LLAMA_SRC}/ggml/include;${KVCODEC_LLAMA_SRC}/include")
endfunction()

kvcodec_import_host_library(ggml-base)
kvcodec_import_host_library(ggml)
