# Installs the build tree BUILD_DIR into WORK_DIR, then builds and runs a consumer against it.
function(run)
    execute_process(COMMAND ${ARGV} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE "${WORK_DIR}")
run("${CMAKE_COMMAND}" --install "${BUILD_DIR}" --prefix "${WORK_DIR}/prefix")
foreach(pattern ${EXPECTED})
    if(NOT EXISTS "${WORK_DIR}/prefix/${pattern}")
        message(FATAL_ERROR "${pattern} was not installed")
    endif()
endforeach()
file(GLOB_RECURSE private RELATIVE "${WORK_DIR}/prefix" "${WORK_DIR}/prefix/include/*-inl.h"
                          "${WORK_DIR}/prefix/include/*.cc")
if(private)
    message(FATAL_ERROR "these are not public: ${private}")
endif()
run("${CMAKE_COMMAND}" -S "${CMAKE_CURRENT_LIST_DIR}" -B "${WORK_DIR}/build" -G "${GENERATOR}"
    "-DCMAKE_PREFIX_PATH=${WORK_DIR}/prefix" -DCMAKE_BUILD_TYPE=Release)
run("${CMAKE_COMMAND}" --build "${WORK_DIR}/build")
run("${WORK_DIR}/build/consumer")
if(EXISTS "${WORK_DIR}/prefix/bin/kvcodec")
    run("${WORK_DIR}/prefix/bin/kvcodec" --version)
endif()
