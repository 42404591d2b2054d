# What `cmake --install` adds to the command and the plug-in: the library, its headers and a CMake package.
include(CMakePackageConfigHelpers)

set(kvcodec_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/kvcodec")
install(TARGETS kvcodec EXPORT kvcodecTargets ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/kvcodec" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        FILES_MATCHING PATTERN "*.h" PATTERN "*-inl.h" EXCLUDE
        PATTERN "gemm.h" EXCLUDE PATTERN "softmax.h" EXCLUDE PATTERN "tile.h" EXCLUDE
        PATTERN "byte_products.h" EXCLUDE PATTERN "test_targets.h" EXCLUDE)  # kernels and what tests share
install(EXPORT kvcodecTargets NAMESPACE kvcodec:: DESTINATION "${kvcodec_package_dir}")
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/kvcodecConfig.cmake.in"
                              "${PROJECT_BINARY_DIR}/kvcodecConfig.cmake"
                              INSTALL_DESTINATION "${kvcodec_package_dir}")
# Before 1.0 a minor version may change anything.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/kvcodecConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/kvcodecConfig.cmake" "${PROJECT_BINARY_DIR}/kvcodecConfigVersion.cmake"
        DESTINATION "${kvcodec_package_dir}")
