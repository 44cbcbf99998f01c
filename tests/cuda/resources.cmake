# cuda_resources: every kernel compiled for HEARTH_CUDA_ARCHITECTURES, whether or not this build has the backend, and what each takes of
# a multiprocessor as a table; fails when a decode kernel spills on the target card (sm_120). Needs nvcc and nothing else; "90-virtual" compiles PTX only.
if(NOT HEARTH_NVCC)
    return()
endif()
set(logs)
set(checked)
foreach(arch ${HEARTH_CUDA_ARCHITECTURES})
    string(REGEX REPLACE "-.*" "" number "${arch}")
    foreach(source ${HEARTH_EMULATED_SOURCES})
        get_filename_component(name "${source}" NAME_WE)
        set(out "${CMAKE_CURRENT_BINARY_DIR}/nvcc/${arch}-${name}")
        if(arch MATCHES "-virtual")
            set(kind -ptx -arch=compute_${number})
        else()
            set(kind -cubin -arch=sm_${number} -Xptxas=-v)
            list(APPEND logs "${out}.log")
        endif()
        list(JOIN kind " " kind)
        # As worker/CMakeLists.txt compiles them.
        add_custom_command(OUTPUT "${out}.log"
            COMMAND sh -c "mkdir -p nvcc && ${HEARTH_NVCC} -std=c++17 -O3 --fmad=false -Xcompiler=-Wall -Xcompiler=-Werror ${kind} -MD -MF ${out}.d -MT ${out}.log -I${CMAKE_SOURCE_DIR} -o ${out}.bin ${source} >${out}.tmp 2>&1 || { cat ${out}.tmp; exit 1; }; mv ${out}.tmp ${out}.log"
            DEPENDS "${source}" DEPFILE "${out}.d" COMMENT "nvcc ${arch}: ${name}.cu" VERBATIM)
        list(APPEND checked "${out}.log")
    endforeach()
endforeach()
add_custom_target(cuda_resources
    COMMAND python3 "${CMAKE_CURRENT_SOURCE_DIR}/resources.py" ${logs}
    DEPENDS ${checked} WORKING_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}" VERBATIM)
